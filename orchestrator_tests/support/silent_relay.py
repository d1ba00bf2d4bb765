"""Ways to instances that fall silent; for tests of instances that AWS takes away (test_instance_loss)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from orchestrator.resources import retry
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_sandbox.proxy import TcpRelay


class SilentRelay:
    """Leads to any number of hosts, until one of them is to fall silent.

    Attributes:
        policy: how patient its connections are.
    """

    def __init__(self) -> None:
        self.policy = retry.SSH
        self._exits = ExitStack()
        self._relays: dict[str, list[TcpRelay]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def fall_silent(self, address: str | None) -> None:
        """From now on, nothing comes from this host or goes to it, and no connection to it is closed."""
        for relay in self._relays.get(address or "", ()):
            relay.silent = True

    def ssh(self, settings: SshSettings, *, address: str, host_key: str | None) -> Ssh:
        """A connection through here; arguments as of `Ssh`."""
        relay = self._exits.enter_context(TcpRelay(settings.port, address))
        relays = self._relays.setdefault(address, [])
        relay.silent = any(other.silent for other in relays)
        relays.append(relay)
        settings = settings.model_copy(update={"port": relay.port})
        return Ssh(settings, address="127.0.0.1", host_key=host_key, policy=self.policy)
