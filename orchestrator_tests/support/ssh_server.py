"""An SSH host: asyncssh in front of real `sh` processes, behind a network that fails; for remote/ and resources/ssh."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncssh

from orchestrator.resources.ssh.connection import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_sandbox.proxy import TcpRelay

T = TypeVar("T")
USER = "ubuntu"


def _with_default_signals() -> None:
    """As sshd starts a command, whatever the tests before have done to the signals of this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class SshHost:
    """A host with one login, on a loopback port, with a home directory of its own.

    Attributes:
        home: home directory of the login.
        host_key: its public host key, as it stands in the tag of an instance.
        authorized: public keys that may log in (OpenSSH format); may change at any time.
        greeting: commands that each login runs first, as ~/.bashrc may.
        login_seconds: how long each login takes.
        network: what lies between it and us.
    """

    def __init__(self, directory: Path, *, host_key_algorithm: str = "ssh-ed25519") -> None:
        self.home = directory / "home"
        self.home.mkdir()
        self.directory = directory
        self._key = asyncssh.generate_private_key(host_key_algorithm)
        self.host_key = self._key.export_public_key().decode().strip()
        client = asyncssh.generate_private_key("ssh-ed25519")
        self.key_path = write_key(directory / "login.pem", client.export_private_key())
        self.authorized = {client.export_public_key().decode().strip()}
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "SHELL": "/bin/sh"}
        self.greeting = ""
        self.login_seconds = 0.0
        self._sessions: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def settings(self, **changes: object) -> SshSettings:
        """Settings to log in here."""
        values: dict[str, object] = {"user": USER, "port": self.network.port, "key_path": self.key_path}
        return SshSettings.model_validate(values | changes)

    def cut(self) -> None:
        """Break all connections with a reset."""
        self.network.cut()

    def swallow(self, on: bool = True) -> None:
        """Accept bytes and connections, and forward nothing."""
        self.network.silent = on

    def go_away(self) -> None:
        """Close the port, and break what is open."""
        self.network.close()

    def come_back(self) -> None:
        """Open the same port again."""
        self.network.open()

    def kill_sessions(self) -> None:
        """Kill the shell of every session with its process group, as a dying session of sshd may."""
        for group in list(self._sessions):
            os.killpg(group, signal.SIGKILL)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(60)

    async def _open(self) -> None:
        host = self

        class Server(asyncssh.SSHServer):
            async def begin_auth(self, username: str) -> bool:
                await asyncio.sleep(host.login_seconds)
                return True

            def public_key_auth_supported(self) -> bool:
                return True

            def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
                return username == USER and key.export_public_key().decode().strip() in host.authorized

        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[self._key],
            process_factory=self._session,
            encoding=None,
        )
        self.network = TcpRelay(self._acceptor.get_port())

    async def _close(self) -> None:
        self.network.close()
        self._acceptor.close()
        await self._acceptor.wait_closed()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _session(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            self.greeting + (process.command or ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_with_default_signals,
            env=self.environment,
            cwd=self.home,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._sessions.add(child.pid)
        feeding = asyncio.ensure_future(_feed(process.stdin, child.stdin))
        try:
            await asyncio.gather(_pass_on(child.stdout, process.stdout), _pass_on(child.stderr, process.stderr))
            status = await child.wait()
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)
        except (BrokenPipeError, asyncssh.Error):
            pass  # the connection is gone
        finally:
            feeding.cancel()
            self._sessions.discard(child.pid)
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
            await asyncio.gather(feeding, child.communicate(), return_exceptions=True)


async def _feed(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    except (ConnectionError, asyncssh.Error):
        pass  # nobody reads it, or the connection is gone
    finally:
        sink.close()


async def _pass_on(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(1 << 16):
        sink.write(data)
        await sink.drain()


def write_key(path: Path, content: bytes) -> Path:
    """Write a private key as ssh-keygen does, for its owner only."""
    path.touch(0o600)
    path.write_bytes(content)
    return path


def generated(path: Path, *, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True, capture_output=True)
    return path


def connected(host: SshHost, *, host_key: str | None = None, **changes: object) -> Ssh:
    """Log in, run a command, and close."""
    with Ssh(host.settings(**changes), address="127.0.0.1", host_key=host_key) as ssh:
        ssh.connect(deadline_seconds=5)
        assert ssh.run(["echo", "hello"]).stdout == b"hello\n"
    return ssh
