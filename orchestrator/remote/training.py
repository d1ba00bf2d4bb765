"""A training on an instance: started once, followed over broken connections, stopped, and asked how it ended.

The other half is `supervisor.sh`, which runs on the instance.
"""

from __future__ import annotations

import codecs
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tenacity

from orchestrator.errors import SshError, SshRefused, SshUnreachable
from orchestrator.remote.job import job_file
from orchestrator.remote.outcome import Outcome
from orchestrator.resources.ssh.channel import Completed
from orchestrator.resources.ssh.connection import Ssh

SILENCE_SECONDS = 20.0
"""The supervisor gives a sign of life every 2 s; after so long without one the connection is given up."""

RECONNECT_SECONDS = 8.0
"""One try to reconnect; between two of them the caller's `check` looks at the instance."""

LONGEST_PAUSE_SECONDS = 4.0
"""Between two tries to reconnect while the training is followed."""

ANSWER_SECONDS = 20.0
"""A short command that is not done by then, or a connection that says nothing while it runs, is given up."""

REFUSED_SECONDS = 120.0
"""A login refused for so long is final. A machine that shuts down (spot) refuses, too, before it is gone."""

_HERE = Path(__file__).parent
_FILES = ("hooks/sitecustomize.py", "hooks/pipes.bash", "supervisor.sh")
"""What is uploaded; the last one is what makes the upload usable."""

_LOG_BEGINS = b"\x1eorchestrator log\n"
_STATE = "state: "
_UPLOAD = (
    'umask 077; d="$HOME/.orchestrator/$1"; mkdir -p "$d/hooks" && cd "$d" || exit 1; '
    "[ -h pid ] && exit 0; "  # a started supervisor keeps its own verbs
    'cat >"$3.$$" && [ $(($(wc -c <"$3.$$"))) -eq "$2" ] && mv -f "$3.$$" "$3"'
)
_CALL = (
    'if cd "$HOME/.orchestrator/$1" 2>/dev/null && [ -e supervisor.sh ]; '
    'then shift; exec sh ./supervisor.sh "$@"; else echo "state: absent"; echo "state: absent" >&2; fi'
)


class RemoteTraining:
    """The training of one MLflow run on the instance at the other end of an SSH connection.

    Args:
        ssh: the connection; it is opened, and opened again, as needed.
        run_id: the MLflow run; names the directory ``~/.orchestrator/<run_id>`` on the instance.
        silence_seconds: a connection without a sign of life for so long is given up.
    """

    def __init__(self, ssh: Ssh, run_id: str, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run_id):
            raise ValueError(f"not an MLflow run ID: {run_id!r}")
        self._ssh = ssh
        self._run_id = run_id
        self._silence_seconds = silence_seconds

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        deadline: datetime,
        check: Callable[[], object] = lambda: None,
    ) -> bool:
        """Start the training, unless it was started before.

        The environment, secrets included, and the command go over standard input into a 0600 file, which
        is removed before the command starts. No shell interprets any of it.

        Args:
            command: program and arguments; they arrive as they are.
            environment: variables to add to those of the login.
            deadline: when the supervisor ends the training, with a time zone. It is kept on the instance as
                the time that is left now, so clocks need not agree.
            check: called after each loss of the connection, before another try; raises when that is in vain.

        Returns:
            Whether this call started it; False when an earlier one did, which is left as it was.

        Raises:
            SshError: it could not be started, or the instance was not reached three times.
            ValueError: no program can be given this command or environment (see `job.py`).
        """
        job = job_file(command, environment)
        seconds = max(0, math.ceil((deadline - datetime.now(UTC)).total_seconds()))
        for name in _FILES:
            content = (_HERE / name).read_bytes()
            upload = ["sh", "-c", _UPLOAD, "sh", self._run_id, str(len(content)), name]
            self._checked(upload, stdin=content, check=check)
        return _state_in(self._call("start", str(seconds), str(len(job)), stdin=job, check=check)) == "started"

    def state(self) -> Outcome | Literal["absent", "running"]:
        """What the instance knows of this training; ``absent`` when it was never started there.

        Raises:
            SshError: the instance was not reached three times.
        """
        said = _state_in(self._call("state"))
        return Outcome.parse(said) or ("running" if said == "running" else "absent")

    def follow(
        self,
        write: Callable[[str], object],
        *,
        on_event: Callable[[str], object] = lambda _: None,
        check: Callable[[], object] = lambda: None,
        offset: int = 0,
    ) -> Outcome:
        """Pass on the training's output as it comes, until its end, over any number of broken connections.

        Memory does not grow with the output: pieces are passed on as they arrive, lines or not. Bytes that
        are not UTF-8 become U+FFFD.

        Args:
            write: takes each piece of the output, stdout and stderr in the order they were written.
            on_event: takes a sentence when the connection broke, and when it is there again.
            check: called after each loss (at most ``silence_seconds`` later) and each vain try to reconnect;
                raises when waiting is in vain, for the instance is gone.
            offset: in bytes, where to begin in the output; 0 tells all of it again.

        Raises:
            HostKeyMismatch: another machine answers at that address now.
            SshRefused: the login is refused for `REFUSED_SECONDS`, and `check` finds nothing wrong.
        """
        tail = _Tail(write, offset)
        pause = 0.0
        while True:
            try:
                if not self._ssh.connected:
                    self._ssh.connect(deadline_seconds=RECONNECT_SECONDS)
                outcome = self._follow_once(tail, on_event)
                if outcome is not None:
                    tail.finish()
                    return outcome
                raise SshUnreachable("the command that reads the output was ended on the instance")
            except (SshUnreachable, SshRefused) as error:
                now = time.monotonic()
                if tail.lost_at is None:
                    tail.lost_at, pause = now, 0.25
                    on_event(f"{error}. The training goes on without us; reconnecting")
                check()
                if isinstance(error, SshRefused) and now - tail.lost_at > REFUSED_SECONDS:
                    raise
            threading.Event().wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def stop(self, *, grace_seconds: int = 5) -> Outcome | None:
        """End the training and all its processes: asked by SIGTERM first, then by SIGKILL.

        Args:
            grace_seconds: time between the two, in seconds.

        Returns:
            How it ended, maybe before; None when it was never started there.

        Raises:
            SshError: the instance was not reached three times.
        """
        return Outcome.parse(_state_in(self._call("stop", str(grace_seconds), more_seconds=grace_seconds + 20)))

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the output, of its last 64 kB, unmasked.

        Args:
            count: how many lines at most.

        Raises:
            SshError: the instance was not reached three times.
        """
        return self._call("last", str(count)).stdout.decode(errors="replace").splitlines()[-count:]

    def _follow_once(self, tail: _Tail, on_event: Callable[[str], object]) -> Outcome | None:
        def hears(part: Callable[[bytes], None]) -> Callable[[bytes], None]:
            def on_data(data: bytes) -> None:
                part(data)
                if tail.begun and tail.lost_at is not None:
                    seconds = time.monotonic() - tail.lost_at
                    tail.lost_at = None
                    on_event(f"connected again after {seconds:.0f} s; no output was missed")

            return on_data

        tail.begin()
        self._ssh.stream(
            self._argv("follow", str(tail.offset)),
            on_stdout=hears(tail.on_stdout),
            on_stderr=hears(tail.on_stderr),
            silence_seconds=self._silence_seconds,
        )
        return Outcome("lost") if tail.state == "absent" else Outcome.parse(tail.state or "unknown")

    def _argv(self, verb: str, *arguments: str) -> list[str]:
        return ["sh", "-c", _CALL, "sh", self._run_id, verb, *arguments]

    def _call(
        self,
        verb: str,
        *arguments: str,
        stdin: bytes = b"",
        more_seconds: float = 0,
        check: Callable[[], object] = lambda: None,
    ) -> Completed:
        return self._checked(self._argv(verb, *arguments), stdin=stdin, more_seconds=more_seconds, check=check)

    def _checked(
        self, argv: Sequence[str], *, stdin: bytes, more_seconds: float = 0, check: Callable[[], object]
    ) -> Completed:
        """Run something that may be run twice."""

        def before_another_try(_: tenacity.RetryCallState) -> None:
            check()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SshUnreachable),
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=0.25),
            before_sleep=before_another_try,
            reraise=True,
        )
        answer = retrying(self._once, argv, stdin=stdin, timeout_seconds=ANSWER_SECONDS + more_seconds)
        if answer.exit_status != 0:
            said = answer.stderr.decode(errors="replace").strip()[-300:]
            raise SshError(
                f"the supervisor of the training could not work on the instance (status {answer.exit_status}): "
                f"{said or 'it said nothing'}; check the disk's space (ROOT_VOLUME_GB) and the image AMI_ID"
            )
        return answer

    def _once(self, argv: Sequence[str], *, stdin: bytes, timeout_seconds: float) -> Completed:
        if not self._ssh.connected:
            self._ssh.connect(deadline_seconds=2 * RECONNECT_SECONDS)
        return self._ssh.run(argv, stdin=stdin, timeout_seconds=timeout_seconds)


class _Tail:
    """What `supervisor.sh follow` says: the log on stdout behind a mark, states on stderr."""

    def __init__(self, write: Callable[[str], object], offset: int) -> None:
        self._write = write
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.offset = offset
        self.lost_at: float | None = None
        self.begin()

    def begin(self) -> None:
        """A new connection: nothing is known but how far we are."""
        self.begun = False
        self._before = b""
        self._line = b""
        self.state = ""

    def on_stdout(self, data: bytes) -> None:
        if not self.begun:  # what a login shell's profile prints comes before the mark
            noise, mark, data = (self._before + data).partition(_LOG_BEGINS)
            self.begun, self._before = bool(mark), noise[-len(_LOG_BEGINS) :]
        self.offset += len(data)
        if text := self._decoder.decode(data):
            self._write(text)

    def on_stderr(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-1024:]
        for line in lines:
            if line.startswith(_STATE.encode()):
                self.state = line.decode(errors="replace").removeprefix(_STATE)

    def finish(self) -> None:
        """The end of the log: a character that was begun is not completed any more."""
        if text := self._decoder.decode(b"", final=True):
            self._write(text)


def _state_in(answer: Completed) -> str:
    return answer.stdout.decode(errors="replace").rpartition(_STATE)[2].strip() or "unknown"
