"""An EC2 other than the sandbox's: moto's API, whose instances are OpenSSH servers; for loop/test_other_systems."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

import boto3
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from orchestrator_tests.support.other_login import Login
from orchestrator_tests.support.other_machine import SshdMachine

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

REGION = "eu-central-1"
ACCOUNT = "222222222222"
PARTITION_TAG = "orchestrator:partition"


class OtherEc2:
    """The API, the account's key pair, image and security group, and a machine per running instance.

    Args:
        directory: for the private key and the machines.
        login: whose trainings are forgotten with the machine that they ran on.

    Attributes:
        machines: by instance.
        impostors: partitions whose instances show another host key than they were given.
    """

    def __init__(self, directory: Path, login: Login) -> None:
        self._directory = directory
        self._login = login
        self.machines: dict[str, SshdMachine] = {}
        self.impostors: set[str] = set()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._backend = ec2_backends[ACCOUNT][REGION]
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._client = boto3.client(
            "ec2",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="other",
            aws_secret_access_key="other",
        )
        pair = self._client.create_key_pair(KeyName="team", KeyType="ed25519")
        self._key = self._directory / "team.pem"
        self._key.touch(0o600)
        self._key.write_text(pair["KeyMaterial"])
        self._image = self._client.register_image(Name="ubuntu with mlflow", RootDeviceName="/dev/sda1")["ImageId"]
        self._group = self._client.create_security_group(GroupName="ssh", Description="lets us in")["GroupId"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for machine in self.machines.values():
            machine.close()

    def env(self) -> dict[str, str]:
        """The settings that lead here; SSH_USER and SSH_PORT are left at their defaults."""
        return {
            "AWS_ACCESS_KEY_ID": "other",
            "AWS_SECRET_ACCESS_KEY": "other",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AMI_ID": self._image,
            "KEY_PAIR_NAME": "team",
            "KEY_PATH": str(self._key),
            "SECURITY_GROUP_ID": self._group,
        }

    def instances(self, partition: str) -> list[InstanceTypeDef]:
        """All instances that a build ever had."""
        answer = self._client.describe_instances(Filters=[{"Name": f"tag:{PARTITION_TAG}", "Values": [partition]}])
        return [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        action = parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
        environ |= {"wsgi.input": io.BytesIO(body), "HTTP_X_MOTO_ACCOUNT_ID": ACCOUNT}
        with self._lock:
            answer = list(self._moto(environ, start_response))
            if action in ("RunInstances", "TerminateInstances"):
                for instance in self._backend.all_instances():
                    self._switch(instance)
        return answer

    def _switch(self, instance: Any) -> None:
        """Bring the machine of moto's instance into the state that the API just gave it."""
        tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
        on = instance.state in ("pending", "running")
        if on and instance.id not in self.machines:
            machine = self.machines[instance.id] = SshdMachine(
                self._directory / instance.id,
                user_data=base64.b64decode(str(instance.user_data)).decode(),
                authorized_key=self._backend.key_pairs[instance.key_name].public_key,
                impostor=tags[PARTITION_TAG] in self.impostors,
            )
            instance.nics[0].public_ip = machine.address
        elif not on and instance.id in self.machines:
            self.machines.pop(instance.id).close()
            self._login.forget(tags["orchestrator:mlflow-run"])


class _Quiet(WSGIRequestHandler):
    """Without a line on standard error for each call."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing."""
