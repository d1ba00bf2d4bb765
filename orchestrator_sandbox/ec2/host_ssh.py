"""The SSH server of a sandbox machine: OpenSSH's behaviour, on asyncssh, with real processes.

Measured against OpenSSH 9: the exit status is sent when the command's process ends, the channel closed
when its output has ended too; a dropped connection closes the command's pipes and sends no signal,
unless it has a terminal, whose end the kernel reports as SIGHUP. https://asyncssh.readthedocs.io
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncssh
from asyncssh.packet import Boolean, String, UInt32

from orchestrator_sandbox.ec2.host_init import Init

USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
CLIENT_MAY_SET = re.compile(r"LANG|LC_\w+")


class Accounts(Protocol):
    """The users of a machine."""

    def home(self, user: str) -> Path:
        """The home directory, made when it is missing."""

    def environment(self, user: str) -> Mapping[str, str]:
        """The variables that a login starts with."""


@dataclass(frozen=True)
class Sshd:
    """Everything that the connections of one machine share."""

    init: Init
    accounts: Accounts
    authorized_keys: Sequence[asyncssh.SSHKey]
    connections: set[asyncssh.SSHServerConnection]

    async def listen(self, *, address: str, port: int, host_keys: Sequence[asyncssh.SSHKey]) -> asyncssh.SSHAcceptor:
        """Accept connections from now on."""
        return await asyncssh.listen(
            address,
            port,
            server_factory=lambda: _Login(self),
            server_host_keys=host_keys,
            process_factory=self._session,
            sftp_factory=self._sftp,
            encoding=None,
            line_editor=False,
            compression_algs=None,
            agent_forwarding=False,
        )

    def cut(self) -> None:
        """Drop every connection at once, in the middle of whatever it does."""
        for connection in tuple(self.connections):
            connection.abort()

    def _sftp(self, channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        user = channel.get_extra_info("username")
        return asyncssh.SFTPServer(channel, chroot=os.fsencode(self.accounts.home(user)))

    async def _session(self, session: asyncssh.SSHServerProcess[bytes]) -> None:
        # When the connection is gone, so is who would hear the exit status.
        with contextlib.suppress(ConnectionError, asyncssh.Error):
            await (self._with_terminal if session.term_type else self._with_pipes)(session)
        session.close()
        await session.wait_closed()

    async def _with_pipes(self, session: asyncssh.SSHServerProcess[bytes]) -> None:
        program = self.init.start(
            ["/bin/sh", "-c", session.command] if session.command else ["/bin/sh"],
            env=self._environment(session),
            cwd=self.accounts.home(session.get_extra_info("username")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process = program.process
        session.set_redirect_pid(process.pid)
        await session.redirect(process.stdin, process.stdout, process.stderr, send_eof=False)
        await self._finish(session, program.ended)

    async def _with_terminal(self, session: asyncssh.SSHServerProcess[bytes]) -> None:
        ours, theirs = os.openpty()
        shell = ["/bin/sh", "-c", session.command] if session.command else ["/bin/sh", "-i"]
        program = self.init.start(
            ["setsid", "--ctty", *shell],
            env={**self._environment(session), "TERM": session.term_type or "dumb"},
            cwd=self.accounts.home(session.get_extra_info("username")),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            new_session=False,
        )
        os.close(theirs)
        session.set_redirect_pid(program.process.pid)
        await session.redirect(os.fdopen(ours, "wb", 0), os.dup(ours), send_eof=False, recv_eof=False)
        await self._finish(session, program.ended)

    async def _finish(self, session: asyncssh.SSHServerProcess[bytes], ended: asyncio.Future[int]) -> None:
        """Report the exit status as soon as it is known; close when all output is sent."""
        code = await ended
        session.set_redirect_pid(None)
        if not session.is_closing():
            # asyncssh's own exit() would close the channel, and lose what a background process writes
            _report(session.channel, code)
        await session.stdout.drain()
        await session.stderr.drain()

    def _environment(self, session: asyncssh.SSHServerProcess[bytes]) -> dict[str, str]:
        user = session.get_extra_info("username")
        client, server = session.get_extra_info("peername"), session.get_extra_info("sockname")
        settable = {name: value for name, value in session.env.items() if CLIENT_MAY_SET.fullmatch(name)}
        return {
            **self.accounts.environment(user),
            **settable,
            "SSH_CONNECTION": f"{client[0]} {client[1]} {server[0]} {server[1]}",
        }


class _Login(asyncssh.SSHServer):
    """One connection: any user name, but the key pair of the instance only."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._sshd.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._sshd.connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return bool(USER_NAME.fullmatch(username)) and any(
            key.public_data == known.public_data for known in self._sshd.authorized_keys
        )


def _report(channel: asyncssh.SSHServerChannel[bytes], code: int) -> None:
    """Send `exit-status` or `exit-signal` (RFC 4254, 6.10) without closing the channel."""
    if code >= 0:
        channel._send_request(b"exit-status", UInt32(code))
        return
    name = str(-code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name.removeprefix("SIG")
    channel._send_request(b"exit-signal", String(name), Boolean(False), String(""), String(""))
