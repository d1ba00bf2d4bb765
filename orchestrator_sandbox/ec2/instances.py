"""moto's EC2 instances, made honest: their state is that of a sandbox machine.

Importing moto's EC2 takes seconds, so `server.py` imports this module when it starts. States and reasons are
AWS's: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html and
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
"""

from __future__ import annotations

import base64
import copy
import itertools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason

from orchestrator_sandbox.ec2.host_config import HostConfig
from orchestrator_sandbox.ec2.machine import Ending, Machine

FIRST_ADDRESS = IPv4Address("127.77.0.2")
ADDRESSES = 2**16 - 4

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
ITSELF = StateReason(
    "Client.InstanceInitiatedShutdown: Instance initiated shutdown", "Client.InstanceInitiatedShutdown"
)
BROKEN = StateReason("Server.InternalError: Internal error on launch", "Server.InternalError")
STARTS = StateReason("pending", "pending")


@dataclass(frozen=True)
class Datacenter:
    """What all machines of one EC2 API share.

    Attributes:
        directory: each machine gets a directory in it, named after its instance.
        ssh_port: the port of every machine's SSH server.
        status_check_seconds: how long the status checks of a running instance are `initializing`.
        lock: held while moto's state is read or changed.
        machines: those that are on, by instance.
        addresses: where the next one may listen.
    """

    directory: Path
    ssh_port: int
    status_check_seconds: float
    lock: threading.RLock = field(default_factory=threading.RLock)
    machines: dict[str, Machine] = field(default_factory=dict)
    addresses: Iterator[IPv4Address] = field(
        default_factory=lambda: (FIRST_ADDRESS + n for n in itertools.cycle(range(ADDRESSES)))
    )

    def open(self, backend: EC2Backend) -> None:
        """From now on, whatever instance `backend` makes is a machine of this datacenter."""
        launch = backend.run_instances

        def run_instances(image_id: str, *args: Any, **kwargs: Any) -> Reservation:
            # moto believes in any name; AWS does not. Each of these raises AWS's own error.
            backend.describe_images(ami_ids=[image_id])
            instance_type = kwargs["instance_type"]
            if not backend.describe_instance_types(filters={"instance-type": [instance_type]}):
                raise EC2ClientError("InvalidParameterValue", f"Invalid value '{instance_type}' for InstanceType.")
            if kwargs.get("key_name"):
                backend.describe_key_pairs([kwargs["key_name"]])
            reservation = launch(image_id, *args, **kwargs)
            for instance in reservation.instances:
                MachineInstance.take_over(instance, self)
            return reservation

        backend.run_instances = run_instances  # type: ignore[method-assign]

    def free_address(self) -> str:
        """A loopback address whose SSH port nothing listens on."""
        for address in itertools.islice(self.addresses, ADDRESSES):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((str(address), self.ssh_port))
                except OSError:
                    continue
                return str(address)
        raise EC2ClientError("InsufficientFreeAddressesInSubnet", "No loopback address is free")


class MachineInstance(Instance):
    """An instance of moto whose states are those of a machine."""

    datacenter: Datacenter
    address: str
    has_public_address: bool
    up_since: float

    @classmethod
    def take_over(cls, plain: Instance, datacenter: Datacenter) -> None:
        """Make an instance that moto has just made one of this datacenter, and switch its machine on."""
        plain.__class__ = cls
        instance = cast(MachineInstance, plain)
        instance.datacenter = datacenter
        instance.address = datacenter.free_address()
        nic = instance.nics[0]
        nic.private_ip_address = instance.address
        for entry in nic.private_ip_addresses:
            entry["PrivateIpAddress"] = instance.address
        instance.has_public_address = bool(nic.public_ip)
        instance._switch_on()

    @property
    def public_dns_name(self) -> str | None:
        return self.public_ip

    @property
    def instance_status(self) -> dict[str, Any]:
        return self._check(super().instance_status)

    @property
    def system_status(self) -> dict[str, Any]:
        return self._check(super().system_status)

    def start(self) -> InstanceState:
        """Answer StartInstances."""
        before = self._require("start", "stopped", "running", "pending")
        if before.name == "stopped":
            self._switch_on()
        return before

    def stop(self) -> InstanceState:
        """Answer StopInstances."""
        before = self._require("stop", "running", "stopping", "stopped")
        if before.name == "running":
            super().stop()
            self._switch_off("stopping")
        return before

    def terminate(self, reason: StateReason | None = None) -> InstanceState:
        """Answer TerminateInstances, any number of times."""
        before = copy.copy(self._state)
        if before.name not in ("shutting-down", "terminated"):
            super().terminate()
            self.nics[0].public_ip = None
            self.state_reason = reason or self.state_reason
            self._switch_off("shutting-down")
        return before

    def reboot(self) -> None:
        """Answer RebootInstances."""
        self._require("reboot", "running")
        self.datacenter.machines[self.id].tell("power reboot")

    def _switch_on(self) -> None:
        self._become("pending")
        self.nics[0].public_ip = None
        self.state_reason = STARTS
        self._reason = ""
        pair = self.ec2_backend.key_pairs.get(self.key_name)
        config = HostConfig(
            instance_id=self.id,
            directory=self.datacenter.directory / self.id,
            scratch=Path(tempfile.gettempdir()) / self.id,
            address=self.address,
            port=self.datacenter.ssh_port,
            user_data=base64.b64decode(str(self.user_data or "")).decode(errors="replace"),
            authorized_key=pair.public_key if pair else None,
        )
        self.datacenter.machines[self.id] = Machine(config, on_up=self._is_up, on_off=self._is_off)

    def _switch_off(self, meanwhile: str) -> None:
        """Go to the state that leads to `stopped` or `terminated`, where `_is_off` brings us."""
        if machine := self.datacenter.machines.get(self.id):
            self._become(meanwhile)
            machine.power_off()
        else:
            self._has_stopped(meanwhile)

    def _is_up(self) -> None:
        with self.datacenter.lock:
            self.up_since = time.monotonic()
            if self.state == "pending":
                self._become("running")
                self.state_reason = StateReason()
                self.nics[0].public_ip = self.address if self.has_public_address else None

    def _is_off(self, ending: Ending) -> None:
        with self.datacenter.lock:
            del self.datacenter.machines[self.id]
            if ending is Ending.ORDERED:
                self._has_stopped(self.state)
            elif ending is Ending.FAILED:
                self.terminate(BROKEN)
            elif self.instance_initiated_shutdown_behavior == "stop":
                super().stop()
                self.state_reason = ITSELF
                self._switch_off("stopping")
            else:
                self.terminate(ITSELF)

    def _has_stopped(self, meanwhile: str) -> None:
        self._become("stopped" if meanwhile == "stopping" else "terminated")
        if self.state == "terminated":
            # The root volume goes with the instance; its logs are kept, to look at.
            for path in (self.datacenter.directory / self.id).iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.suffix != ".log":
                    path.unlink()

    def _become(self, state: str) -> None:
        self._state.name, self._state.code = state, CODES[state]

    def _require(self, action: str, *states: str) -> InstanceState:
        if self.state not in states:
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{self.id}' is not in a state from which it can be {action}ed: {self.state}.",
            )
        return copy.copy(self._state)

    def _check(self, passed: dict[str, Any]) -> dict[str, Any]:
        if self.state != "running" or time.monotonic() - self.up_since >= self.datacenter.status_check_seconds:
            return passed
        return {"Status": "initializing", "Details": [{"Name": "reachability", "Status": "initializing"}]}
