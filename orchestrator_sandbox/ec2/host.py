"""A machine of the sandbox: one process with an SSH server, cloud-init, a power switch, and all that runs there.

Run as `python -m orchestrator_sandbox.ec2.host <file of a HostConfig>` by `machine.py`. It needs Linux. It
is no jail: its processes are the user's own, in home directories of their own. They get none of the
variables of the process that started the sandbox.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path

import asyncssh

from orchestrator_sandbox.ec2 import cloud_init, power
from orchestrator_sandbox.ec2.host_config import CERTIFICATES, ENDED_BY_ITSELF, REBOOT, HostConfig
from orchestrator_sandbox.ec2.host_init import Init
from orchestrator_sandbox.ec2.host_ssh import Sshd

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ORDERED_TO_END = 128 + signal.SIGTERM


class Host:
    """One boot of one machine.

    Args:
        config: what the sandbox wants it to be.
    """

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.cloud = cloud_init.parse(config.user_data)
        self.shims = config.directory / "sbin"
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._init = Init()
        keys = (*self.cloud.authorized_keys, *filter(None, [config.authorized_key]))
        self._sshd = Sshd(self._init, self, [asyncssh.import_public_key(key) for key in keys], set())

    async def run(self) -> int:
        """Boot, serve until the power is off, and end every process; returns the exit status."""
        self._loop.add_signal_handler(signal.SIGTERM, self._power_off, ORDERED_TO_END)
        self.config.scratch.mkdir(mode=0o700, exist_ok=True)
        control = self._install_power_switch()
        self._start(self._boot())
        try:
            return await self._over
        finally:
            for task in self._tasks:
                task.cancel()
            self._loop.remove_reader(control)
            os.close(control)
            if self._acceptor:
                self._acceptor.close()
            self._sshd.cut()
            self._init.end_all()
            shutil.rmtree(self.config.scratch, ignore_errors=True)

    def home(self, user: str) -> Path:
        """The home directory of a user, made when it is missing."""
        path = self.config.directory / "home" / user
        path.mkdir(parents=True, exist_ok=True)
        return path

    def environment(self, user: str) -> Mapping[str, str]:
        """The variables that a process of this user starts with."""
        git = Path(shutil.which("git") or "/usr/bin/git").parent
        return {
            **{name: os.environ[name] for name in CERTIFICATES if name in os.environ},
            "PATH": f"{self.shims}:{Path(sys.executable).parent}:{SYSTEM_PATH}:{git}",
            "HOME": str(self.home(user)),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.config.scratch),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    async def _boot(self) -> None:
        for remark in self.cloud.remarks:
            sys.stderr.write(f"cloud-init: {remark}\n")
        await self._run_script("bootcmd", self.cloud.boot_script)
        await self._listen()
        first_boot = self.config.directory / "booted-once"
        if not first_boot.exists():
            first_boot.touch()
            await self._run_script("runcmd", self.cloud.first_boot_script)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A machine that cannot boot, or not listen again, ends with its reason in the log."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self._over.set_exception(error)

    async def _listen(self) -> None:
        self._acceptor = await self._sshd.listen(
            address=self.config.address, port=self.config.port, host_keys=self._host_keys()
        )

    def _host_keys(self) -> list[asyncssh.SSHKey]:
        """Those of the user-data; else one that is made at the first boot and kept."""
        if self.cloud.host_keys:
            return [asyncssh.import_private_key(key) for key in self.cloud.host_keys]
        path = self.config.directory / "ssh_host_ed25519_key"
        if not path.exists():
            path.touch(0o600)
            path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        return [asyncssh.read_private_key(path)]

    async def _run_script(self, name: str, script: str) -> None:
        if not script:
            return
        path = self.config.directory / name
        path.write_text(power.contained(script, self.shims))
        path.chmod(0o700)
        with (self.config.directory / "cloud-init-output.log").open("ab") as log:
            program = self._init.start(
                [str(path)], env=self.environment("root"), cwd=self.home("root"), stdout=log, stderr=log
            )
        if code := await program.ended:
            sys.stderr.write(f"cloud-init: {name} ended with exit status {code}\n")

    def _install_power_switch(self) -> int:
        """Make the control FIFO, and programs named as those that switch a machine off, which write to it."""
        self.config.control.unlink(missing_ok=True)
        os.mkfifo(self.config.control, 0o600)
        power.install(self.shims, self.config.control)
        # Opened for writing too, so that it has no end of file when the last writer leaves.
        control = os.open(self.config.control, os.O_RDWR | os.O_NONBLOCK)
        self._loop.add_reader(control, self._obey, control)
        return control

    def _obey(self, control: int) -> None:
        lines = os.read(control, 65536).decode(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            match line.split():
                case ["power", program, *arguments]:
                    if (order := power.meaning(program, arguments)) is not None:
                        self._power(order)
                case ["cut"]:
                    self._sshd.cut()
                case ["refuse", seconds]:
                    self._start(self._refuse(float(seconds)))
                case ["swallow", seconds] if number == len(lines):
                    # The whole host stands still, so connections stay open and nothing answers,
                    # until the time is over or the next order comes.
                    select.select([control], [], [], float(seconds))

    async def _refuse(self, seconds: float) -> None:
        if self._acceptor is not None:
            acceptor, self._acceptor = self._acceptor, None
            for listener in acceptor.sockets:
                self._loop.remove_reader(listener)
            # asyncio forgets, unclosed, a connection that it has just accepted when its server closes.
            await asyncio.sleep(0)
            acceptor.close()
            self._sshd.cut()
            await asyncio.sleep(seconds)
            await self._listen()

    def _power(self, order: power.Off | power.Cancelled) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(order, power.Off):
            code = REBOOT if order.reboot else ENDED_BY_ITSELF
            self._timer = self._loop.call_later(order.minutes * 60, self._power_off, code)

    def _power_off(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)


async def _run(config: HostConfig) -> int:
    return await Host(config).run()


def main(path: Path) -> int:
    """Be the machine described in that file until it is switched off."""
    return asyncio.run(_run(HostConfig.read(path)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
