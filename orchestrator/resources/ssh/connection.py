"""One verified SSH connection to an instance: connect, run a command, stream a command's output.

Only `exec` channels are used: not every sshd has SFTP set up.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import dagster as dg
import paramiko
import tenacity

from orchestrator.errors import HostKeyMismatch, SshError, SshRefused, SshUnreachable
from orchestrator.resources import retry
from orchestrator.resources.retry import SshPolicy
from orchestrator.resources.ssh.channel import FAULTS, KEPT_BYTES, Completed, ExchangeError, close, exchange
from orchestrator.resources.ssh.host_keys import HostTrust
from orchestrator.resources.ssh.login_key import private_key
from orchestrator.resources.ssh.login_words import login_words
from orchestrator.settings.groups import SshSettings

KEEPALIVE_SECONDS = 15
"""Pause between two signs of life, under the idle timeouts of NAT gateways (AWS: 350 s) and firewalls."""

_TCP_KEEPALIVE = {"TCP_KEEPIDLE": KEEPALIVE_SECONDS, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

# What goes wrong in paramiko's thread reaches us as an exception; its tracebacks would stand in the run's log.
_PARAMIKO_LOG = f"{__name__}.paramiko"
logging.getLogger(_PARAMIKO_LOG).setLevel(logging.CRITICAL)


class Ssh:
    """A connection to one host, opened by `connect`, again and again if need be.

    Use it from one thread; `close` may be called from any, and makes the others' calls fail.

    Args:
        settings: the login.
        address: host name or IP address.
        host_key: the key planted on the instance, as `ssh-ed25519 AAAA...`.
        policy: how patient to be.
        young_seconds: for so long from now on, the host may still be being set up: another host key, or a refused
            login, is no final answer. Nothing is sent to a host that is not verified.

    Raises:
        SshRefused: the private key cannot be used.
        SshError: there is no host key to compare with.
    """

    def __init__(
        self,
        settings: SshSettings,
        *,
        address: str,
        host_key: str | None,
        policy: SshPolicy = retry.SSH,
        young_seconds: float = 0,
    ) -> None:
        self._settings = settings
        self._address = address
        self._policy = policy
        self._trust = HostTrust(settings, address=address, host_key=host_key)
        self._key = private_key(settings)
        self._transport: paramiko.Transport | None = None
        self._young_until = time.monotonic() + young_seconds
        # Sooner, because a host that goes on showing another key is none that is being set up.
        self._another_key_until = time.monotonic() + young_seconds * 2 / 3
        self._refusals = 0
        self._next_login_at = time.monotonic()
        self._slowest_login = 0.0
        self._opened = False  # a session, over this connection
        self._reached = False
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection for good."""
        self._closed.set()
        self._hang_up()

    def move(self, address: str) -> None:
        """Connect to this address from the next attempt on: the same host, with the same key, may get another one.

        Args:
            address: host name or IP address.
        """
        self._address = address

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as is known here."""
        transport = self._transport
        return transport is not None and transport.is_active()

    def connect(self, *, deadline_seconds: float | None = None) -> None:
        """Connect, verify the host and log in; try again until the deadline.

        Args:
            deadline_seconds: how long to try; None: as the policy says.

        Raises:
            SshUnreachable: no connection before the deadline, or a host that is still young refuses us or is another.
            SshRefused: the login is still refused after the policy's `login_seconds`, or can never succeed.
            HostKeyMismatch: another machine answers.
        """
        policy = self._policy if deadline_seconds is None else self._policy.with_total(deadline_seconds)
        deadline = time.monotonic() + policy.total_seconds
        refused_since: list[float] = []

        def worth_another(error: BaseException) -> bool:
            if isinstance(error, _NotYet):
                refused_since.append(time.monotonic())
                return self._may_be_set_up(error.reason) or (
                    not isinstance(error.reason, HostKeyMismatch)
                    and time.monotonic() - refused_since[0] < policy.login_seconds
                )
            return isinstance(error, SshUnreachable)

        def pause(state: tenacity.RetryCallState) -> float:
            """The last attempt begins at the deadline, and no later."""
            wait = max(policy.pauses(state), self._next_login_at - time.monotonic())
            return min(wait, max(0.0, deadline - time.monotonic()))

        def attempt() -> None:
            left = max(policy.last_attempt_seconds, deadline - time.monotonic())
            self._attempt(min(policy.connect_seconds, left))

        self._closed.wait(min(max(0.0, self._next_login_at - time.monotonic()), policy.total_seconds))
        remaining = max(0.0, deadline - time.monotonic())
        try:
            tenacity.Retrying(
                retry=tenacity.retry_if_exception(worth_another),
                stop=tenacity.stop_after_delay(remaining) | tenacity.stop_when_event_set(self._closed),
                wait=pause,
                sleep=tenacity.sleep_using_event(self._closed),
                reraise=True,
            )(attempt)
        except _NotYet as error:
            if self._may_be_set_up(error.reason):
                raise SshUnreachable(f"{error.reason}. It is being set up, and gets more time") from error.reason
            raise error.reason from error

    def _may_be_set_up(self, reason: SshError) -> bool:
        """Whether the host is so young that this may pass."""
        until = self._another_key_until if isinstance(reason, HostKeyMismatch) else self._young_until
        return time.monotonic() < until

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float | None = None) -> Completed:
        """Run a short command to its end.

        Args:
            argv: program and arguments, which arrive as they are.
            stdin: what it reads.
            timeout_seconds: how long it may take; None: as the policy says.

        Raises:
            SshUnreachable: the connection broke, or the command took too long.
        """
        limit = self._policy.answer_seconds if timeout_seconds is None else timeout_seconds
        stdout, stderr = bytearray(), bytearray()
        try:
            status = self._execute(
                argv,
                stdin=stdin,
                on_stdout=lambda data: stdout.extend(data[: KEPT_BYTES - len(stdout)]),
                on_stderr=lambda data: stderr.extend(data[: KEPT_BYTES - len(stderr)]),
                silence_seconds=limit,
                timeout_seconds=limit,
            )
        except SshUnreachable as error:
            if stdout or stderr:
                words = login_words(bytes(stdout), bytes(stderr), stdin=stdin)
                raise SshUnreachable(f"{error}; before that, {words}") from error
            raise
        return Completed(exit_status=status, stdout=bytes(stdout), stderr=bytes(stderr))

    def stream(
        self,
        argv: Sequence[str],
        *,
        on_stdout: Callable[[bytes], object],
        on_stderr: Callable[[bytes], object],
        silence_seconds: float,
    ) -> int | None:
        """Run a long command and pass on what it says as it comes; nothing is collected.

        Args:
            argv: program and arguments, which arrive as they are.
            on_stdout: takes each piece of its output.
            on_stderr: takes each piece of its complaints.
            silence_seconds: a command that says nothing for so long is given up as cut off.

        Returns:
            The exit status; None when a signal killed the command.

        Raises:
            SshUnreachable: the connection broke, or nothing came for `silence_seconds`.
        """
        return self._execute(
            argv,
            stdin=b"",
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            silence_seconds=silence_seconds,
            timeout_seconds=None,
        )

    def _attempt(self, seconds: float) -> None:
        self._hang_up()
        if self._closed.is_set():
            raise self._unreachable("the connection was closed")
        try:
            sock = socket.create_connection((self._address, self._settings.port), timeout=seconds)
        except OSError as error:
            raise self._unreachable(str(error) or type(error).__name__) from error
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        transport = paramiko.Transport(sock)
        transport.set_log_channel(_PARAMIKO_LOG)
        seconds = self._login_seconds(seconds)
        transport.handshake_timeout = seconds  # else its timer thread would outlive the attempt
        self._transport, self._opened = transport, False
        try:
            with self._limited(transport, seconds), self._measured():
                self._log_in(transport)
            transport.set_keepalive(KEEPALIVE_SECONDS)
            self._reached = True
            self._refusals = 0
        except (HostKeyMismatch, _LoginRefused) as error:
            self._hang_up()
            pause = min(self._policy.refused_pause_seconds * 2**self._refusals, 2 * self._policy.refused_pause_seconds)
            self._refusals += 1
            self._next_login_at = time.monotonic() + pause
            raise _NotYet(error) from error
        except BaseException:
            self._hang_up()
            raise

    def _login_seconds(self, seconds: float) -> float:
        """What a login gets once the host has accepted the connection, and is thus there."""
        return max(seconds, min(2 * self._slowest_login, self._policy.longest_login_seconds))

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        """Note how long a part of a login takes, also when that was too long."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._slowest_login = max(self._slowest_login, time.monotonic() - started)

    def _log_in(self, transport: paramiko.Transport) -> None:
        try:
            if self._trust.algorithms:
                transport.get_security_options().key_types = self._trust.algorithms
            transport.start_client()
            self._trust.verify(transport.get_remote_server_key())
            further = transport.auth_publickey(self._settings.user, self._key)
            if further:
                raise self._never(f"wants more than the key: {', '.join(further)} as well")
        except paramiko.ssh_exception.IncompatiblePeer as error:
            if "host key" in str(error):
                raise self._trust.mismatch(f"no {' or '.join(self._trust.algorithms)} key") from error
            raise SshRefused(
                f"{self._address} and we have no SSH algorithm in common ({error}); update the image AMI_ID"
            ) from error
        except paramiko.AuthenticationException as error:
            if not transport.is_active():
                raise  # it went away
            if isinstance(error, paramiko.BadAuthenticationType) and error.allowed_types:
                raise self._never(f"takes no key, but {', '.join(error.allowed_types)}") from error
            raise _LoginRefused(
                f"{self._address} refused the login of SSH_USER={self._settings.user} with the key "
                f"KEY_PATH={self._settings.key_path}; compare with the image's user and with KEY_PAIR_NAME"
            ) from error

    def _never(self, demand: str) -> SshRefused:
        return SshRefused(
            f"{self._address} {demand} (sshd's AuthenticationMethods or PubkeyAuthentication), which nobody is here to "
            f"give: let SSH_USER={self._settings.user} log in with the key alone there, or choose another image AMI_ID"
        )

    def _execute(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes,
        on_stdout: Callable[[bytes], object],
        on_stderr: Callable[[bytes], object],
        silence_seconds: float,
        timeout_seconds: float | None,
    ) -> int | None:
        transport = self._transport
        if transport is None or not transport.is_active():
            raise self._unreachable("the connection is not open")
        try:
            # The first session is a part of the login: PAM sets it up, and may ask a directory service.
            first = not self._opened
            with (
                self._limited(transport, self._login_seconds(silence_seconds) if first else silence_seconds),
                self._measured() if first else contextlib.nullcontext(),
            ):
                channel = transport.open_session()
                channel.exec_command(shlex.join(argv))
            self._opened = True
            try:
                status = exchange(
                    channel,
                    stdin=stdin,
                    on_stdout=on_stdout,
                    on_stderr=on_stderr,
                    silence_seconds=silence_seconds,
                    timeout_seconds=timeout_seconds,
                )
            except ExchangeError as error:
                raise self._unreachable(str(error)) from error
            finally:
                close(channel)
        except SshUnreachable:
            self._hang_up()
            raise
        if status is None and not transport.is_active():
            raise self._unreachable("the connection broke")
        return status

    @contextlib.contextmanager
    def _limited(self, transport: paramiko.Transport, seconds: float) -> Iterator[None]:
        """Bound what paramiko does in this block: some of its waits know no timeout, but end when we close.

        Raises:
            SshUnreachable: it took longer, or the connection broke.
        """
        watchdog = threading.Timer(seconds, transport.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        except FAULTS as error:
            reason = str(error) or "the other side closed the connection"
            raise self._unreachable(reason if watchdog.is_alive() else f"no answer within {seconds:g} s") from error
        finally:
            watchdog.cancel()

    def _hang_up(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            transport.sock.close()

    def _unreachable(self, reason: str) -> SshUnreachable:
        host = f"{self._address} port {self._settings.port}"
        if self._reached:
            return SshUnreachable(f"the SSH connection to {host} broke: {reason}")
        return SshUnreachable(
            f"no SSH connection to {host}: {reason}; check that SECURITY_GROUP_ID lets us in, SSH_PORT, and "
            "INSTANCE_ADDRESS (public or private)"
        )


class _LoginRefused(SshRefused):
    """The key is not accepted, which may be so because it is not there yet."""


class _NotYet(Exception):
    """An answer that a host may take back while it is being set up."""

    def __init__(self, reason: HostKeyMismatch | _LoginRefused) -> None:
        super().__init__(str(reason))
        self.reason = reason


class SshResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens SSH connections with a pipeline's settings."""

    def connect(self, settings: SshSettings, *, address: str, host_key: str | None, young_seconds: float = 0) -> Ssh:
        """A connection that is yet to be opened with `Ssh.connect`.

        Args:
            settings: of the pipeline.
            address: host name or IP address of the instance.
            host_key: the key planted on it.
            young_seconds: see `Ssh`.
        """
        return Ssh(settings, address=address, host_key=host_key, young_seconds=young_seconds)
