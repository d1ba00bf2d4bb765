"""A Docker Engine of the sandbox's own: its data, socket and containers are in one folder, and end with it.

Needs root and Debian's `docker.io`. It touches no network of the machine: containers are to ask for
`{"network": "host"}`, or the engine gets a network namespace of its own, where it makes networks as it likes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import tenacity

from orchestrator.errors import SandboxError
from orchestrator_sandbox.processes.child import ChildProcess

DOCKERD = "/usr/sbin/dockerd"
CLIENT = "/usr/bin/docker"
"""Debian's, which speaks BuildKit by itself; others of that name want a plugin for it."""

COMMAND_SECONDS = 60
BUILD_SECONDS = 1200
START_SECONDS = 60
BORROWED = ("/usr", "/etc")
"""What containers of a borrowed image find at the same place, read-only: the machine's own programs."""


class DockerEngine:
    """A Docker Engine.

    Args:
        directory: where it keeps everything, on a real disk: overlay2 does not work on an overlay. What an engine that
            was ended has built there is there again.
        own_network: it and its containers live in a network namespace of their own, from which nothing leads out.

    Attributes:
        directory: where it keeps everything.
        host: its address, for the variable DOCKER_HOST.

    Raises:
        SandboxError: there is no dockerd, or it does not start.
    """

    def __init__(self, directory: Path, *, own_network: bool = False) -> None:
        if not Path(DOCKERD).exists():
            raise SandboxError(f"the sandbox's Docker Engine needs {DOCKERD}: install the package docker.io as root")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._short = Path(tempfile.mkdtemp(prefix="docker-"))  # a Unix socket's path may have 107 characters only
        self.host = f"unix://{self._short}/docker.sock"
        self._exec = self._short / "exec"
        # For loopback's sake, which is down in a new namespace, and through which published ports lead.
        apart = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"') if own_network else ()
        self._dockerd = ChildProcess(
            [
                *apart,
                DOCKERD,
                f"--host={self.host}",
                f"--data-root={directory / 'data'}",
                f"--exec-root={self._exec}",
                f"--pidfile={self._short / 'pid'}",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
                f"--userland-proxy={str(own_network).lower()}",
                "--storage-driver=overlay2",
                "--oom-score-adjust=0",  # what it would set needs CAP_SYS_RESOURCE
            ],
            name="dockerd",
            log=directory / "dockerd.log",
            # Its own programs before others of the same name.
            env={**os.environ, "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"},
        )
        try:
            self._await()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and remove what it had: nobody else uses it."""
        self.end()
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def end(self) -> None:
        """Kill its containers, and end it; the next engine of that directory has its images. May be called again."""
        if not self._dockerd.alive():
            return
        with contextlib.suppress(SandboxError):
            if containers := self.run("ps", "--all", "--quiet").split():
                self.run("rm", "--force", *containers)
        self._dockerd.close()
        for place in (*self._exec.glob("netns/*"), *self.directory.glob("data/overlay2/*/merged")):
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True, timeout=COMMAND_SECONDS)
        shutil.rmtree(self._short, ignore_errors=True)

    def inside(self, *words: str) -> list[str]:
        """A command that runs in the engine's own network namespace."""
        return ["nsenter", f"--net=/proc/{self._dockerd.pid}/ns/net", *words]

    @property
    def environment(self) -> dict[str, str]:
        """That of a client that talks to this engine, BuildKit included."""
        return {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}

    def build(self, context: Path, *arguments: str) -> str:
        """Build an image with BuildKit, in the machine's own network; return what the builder says.

        Args:
            context: the folder of the Dockerfile.
            arguments: further ones of `docker build`.

        Raises:
            SandboxError: it failed.
        """
        words = ("build", "--progress=plain", "--network=host", *arguments, str(context))
        done = self._client(*words, seconds=BUILD_SECONDS)
        output = done.stderr.decode(errors="replace")
        if done.returncode != 0:
            raise SandboxError(f"docker build failed: {output.strip()}")
        return output

    def run(self, *arguments: str, stdin: bytes = b"", seconds: float = COMMAND_SECONDS) -> str:
        """Run one `docker` command and return its standard output.

        Raises:
            SandboxError: it failed.
        """
        done = self._client(*arguments, stdin=stdin, seconds=seconds)
        if done.returncode != 0:
            raise SandboxError(f"docker {' '.join(arguments)} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def _client(self, *arguments: str, stdin: bytes = b"", seconds: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [CLIENT, *arguments],
                env=self.environment,
                input=stdin,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxError(f"docker {arguments[0]} could not be run: {error}") from error

    def borrowed_image(self, name: str, *, path: str, files: Sequence[tuple[str, str]] = ()) -> None:
        """Make an image of a few bytes, whose programs are the machine's: its containers must mount `BORROWED`.

        Args:
            name: its tag.
            path: the variable PATH in it.
            files: paths and texts of what else is in it.
        """
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for folder, mode in {"usr": 0o755, "etc": 0o755, "tmp": 0o1777}.items():
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, mode
                tar.addfile(entry)
            for link in ("bin", "lib", "lib64"):
                entry = tarfile.TarInfo(link)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{link}"
                tar.addfile(entry)
            for file, text in files:
                entry = tarfile.TarInfo(file.lstrip("/"))
                entry.size, entry.mode = len(text.encode()), 0o644
                tar.addfile(entry, io.BytesIO(text.encode()))
        self.run("import", "--change", f"ENV PATH={path}", "-", name, stdin=archive.getvalue())

    def containers(self, label: str) -> list[str]:
        """The IDs of the containers with this label, whether they run or not."""
        return self.run("ps", "--all", "--quiet", "--filter", f"label={label}").split()

    def _await(self) -> None:
        def answers() -> bool:
            if not self._dockerd.alive():
                raise SandboxError(f"dockerd ended; its log {self._dockerd.log} ends with:\n{self._dockerd.tail()}")
            try:
                self.run("version")
            except SandboxError:
                return False
            return True

        try:
            tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda answer: not answer),
                stop=tenacity.stop_after_delay(START_SECONDS),
                wait=tenacity.wait_fixed(0.1),
            )(answers)
        except tenacity.RetryError as error:
            raise SandboxError(f"dockerd does not answer; its log is {self._dockerd.log}") from error
