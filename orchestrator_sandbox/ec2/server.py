"""EC2 on one computer: moto's API, whose running instances are real SSH hosts on loopback addresses of their own."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from orchestrator.errors import SandboxError
from orchestrator_sandbox.ec2.api import AccountMiddleware, ApiServer, AwsFaults
from orchestrator_sandbox.ec2.signature import SandboxCredentials
from orchestrator_sandbox.folders import private_folder, write_secret
from orchestrator_sandbox.processes.child import free_port

if TYPE_CHECKING:
    from moto.ec2.models import EC2Backend

    from orchestrator_sandbox.ec2.instances import MachineInstance
    from orchestrator_sandbox.ec2.machine import Machine

REGION = "us-east-1"
KEY_PAIR = "sandbox"
LOGIN = "ubuntu"


class Ec2Server:
    """An EC2 API with real machines; ready when constructed, and with nothing left when closed.

    An instance is `pending` until its SSH server answers, `running` with its address then, and what its
    user-data says really happens: as the user who runs the sandbox, so its credentials are random and new at
    each start. It needs Linux, where any 127.x.y.z is a loopback address.

    Args:
        directory: for the key of the login, and for one directory per machine.
        port: of the API; 0 for any.
        ssh_port: of all machines; 0 for any that is free.
        status_check_seconds: how long a running instance takes until its status checks are 2/2.
        instance_type: what `env` names.

    Attributes:
        url: of the API.
        faults: errors for the next calls of the API.
        key_path: private key of the key pair.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        ssh_port: int = 0,
        status_check_seconds: float = 1,
        instance_type: str = "t3.medium",
    ) -> None:
        # These imports take seconds, which only a sandbox that starts has to pay.
        from moto.ec2.models import ec2_backends
        from moto.moto_server import werkzeug_app as moto_server

        from orchestrator_sandbox.ec2.instances import FIRST_ADDRESS, Datacenter

        private_folder(directory)
        self.instance_type = instance_type
        self.ssh_port = ssh_port or free_port(str(FIRST_ADDRESS))
        self.key_path = directory / "key.pem"
        self.faults = AwsFaults()
        account = f"{secrets.randbelow(10**12):012}"  # moto keeps one world per account, in this process
        self._backend: EC2Backend = ec2_backends[account][REGION]
        self._datacenter = Datacenter(directory, self.ssh_port, status_check_seconds)
        self._datacenter.open(self._backend)
        self._furnish()
        # MOTO_DISABLE_GLOBAL_CORS does the same, where moto is not imported yet.
        moto_server.DISABLE_GLOBAL_CORS = True  # type: ignore[attr-defined]
        moto = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        app = AccountMiddleware(moto, account, self._datacenter.lock, self.faults)
        self._credentials = SandboxCredentials()
        self._api = ApiServer(app, self._credentials, port=port, handler=moto_server.MotoRequestHandler)
        self.url = self._api.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def env(self) -> dict[str, str]:
        """The settings that lead here."""
        return {
            "AWS_ACCESS_KEY_ID": self._credentials.key_id,
            "AWS_SECRET_ACCESS_KEY": self._credentials.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AMI_ID": self._ami,
            "INSTANCE_TYPE": self.instance_type,
            "KEY_PAIR_NAME": KEY_PAIR,
            "KEY_PATH": str(self.key_path),
            "SECURITY_GROUP_ID": self._security_group,
            "SSH_USER": LOGIN,
            "SSH_PORT": str(self.ssh_port),
        }

    def answer_for(self, url: str) -> None:
        """Also take what was signed for this address: a proxy's, on the way here."""
        self._credentials.signed_hosts.add(urlsplit(url).netloc)

    def instance_ids(self) -> list[str]:
        """Every instance there ever was."""
        with self._datacenter.lock:
            return [instance.id for instance in self._backend.all_instances()]

    def terminate_from_outside(self, instance_id: str, *, code: str = "Server.SpotInstanceTermination") -> None:
        """Take an instance away as AWS, or a person at the console, does.

        Args:
            instance_id: which.
            code: the reason that it is described with
                (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html).
        """
        from moto.ec2.models.instances import StateReason

        with self._datacenter.lock:
            self._instance(instance_id).terminate(StateReason(f"{code}: the sandbox took it away", code))

    def cut_connections(self, instance_id: str) -> None:
        """Drop the instance's SSH connections, in the middle of whatever they do."""
        self._machine(instance_id).tell("cut")

    def refuse_connections(self, instance_id: str, *, seconds: float) -> None:
        """Drop the instance's SSH connections, and accept no other for some seconds."""
        self._machine(instance_id).tell(f"refuse {seconds}")

    def swallow_traffic(self, instance_id: str, *, seconds: float) -> None:
        """Answer nothing on any connection for some seconds, without closing one; its programs go on."""
        self._machine(instance_id).tell(f"swallow {seconds}")

    def close(self) -> None:
        """Take all machines down and stop answering; returns when that is done. May be called again."""
        self._api.close()
        with self._datacenter.lock:
            machines = list(self._datacenter.machines.values())
        for machine in machines:
            machine.power_off()
        for machine in machines:
            machine.join()

    def _furnish(self) -> None:
        """Make what an account needs before its first instance."""
        backend = self._backend
        image = backend.register_image("orchestrator-training", "a machine of the sandbox")
        image.root_device_name = "/dev/sda1"
        self._ami = str(image.id)
        group = backend.create_security_group("orchestrator", "SSH from this computer")
        self._security_group = str(group.id)
        backend.authorize_security_group_ingress(
            group.id, "tcp", str(self.ssh_port), str(self.ssh_port), [{"CidrIp": "127.0.0.0/8"}]
        )
        pair = backend.create_key_pair(KEY_PAIR, "rsa", {})
        write_secret(self.key_path, pair.material.decode() if isinstance(pair.material, bytes) else pair.material)

    def _instance(self, instance_id: str) -> MachineInstance:
        from orchestrator_sandbox.ec2.instances import MachineInstance

        instance = self._backend.get_instance_by_id(instance_id)
        if not isinstance(instance, MachineInstance):
            raise SandboxError(f"the sandbox has no instance {instance_id}: look it up with describe_instances")
        return instance

    def _machine(self, instance_id: str) -> Machine:
        with self._datacenter.lock:
            machine = self._datacenter.machines.get(self._instance(instance_id).id)
        if machine is None:
            raise SandboxError(f"instance {instance_id} is off: start another one")
        return machine
