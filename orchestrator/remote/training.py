"""A training on an instance: started once, followed over broken connections, stopped, and asked how it ended.

The other half is `supervisor.sh`, which runs on the instance.
"""

from __future__ import annotations

import codecs
import logging
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
from orchestrator.remote.job import Argument, JobFile, job_file
from orchestrator.remote.training_exit import TrainingExit
from orchestrator.resources.retry import REMOTE_CALLS, REMOTE_FOLLOWING, RetryPolicy
from orchestrator.resources.ssh import Completed, Ssh, login_advice, login_words

_log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_FILES = (
    "hooks/preflight.py",
    "hooks/checkout.py",
    "hooks/system_metrics.py",
    "hooks/model_check.py",
    "hooks/load_model.py",
    "hooks/sitecustomize.py",
    "hooks/pipes.bash",
    "supervisor.sh",
)
"""What is uploaded; the last one is what makes the upload usable."""

_LOG_BEGINS = b"\x1eorchestrator log\n"
_STATE = "state: "
_UPLOAD = (
    'umask 077; d="$HOME/.orchestrator/$1"; mkdir -p "$d/hooks" && cd "$d" || exit 1; '
    # a started supervisor keeps its own verbs
    '[ -h pid ] || { cat >"$3.$$" && [ $(($(wc -c <"$3.$$"))) -eq "$2" ] && mv -f "$3.$$" "$3"; } || exit 1; '
    'echo "state: uploaded"'
)
_ENDED = r"(?:exited|signaled|deadline|stopped|lost|rebooted)\b.*"
_UPLOADED = re.compile("uploaded")
_STARTED = re.compile(r"(?P<how>started|adopted)(?P<as_login> as-login)?")
_STATES = re.compile(rf"absent|running|{_ENDED}")
"""Only these are answers: a login may run something else, say whatever it likes, and exit with status 0."""

_STRANGE_ENDS = 5
"""So many commands in a row that exit with status 0 and are not ours: no loss of a connection looks like that."""

_LOOK_AT_THE_LOGIN = (
    "look at what it runs first (~/.bashrc, ForceCommand): `ssh SSH_USER@instance echo hello` must print hello"
)

_KEPT_NOISE = 4096
"""Bytes of what a login says before our command does."""

_CALL = (
    'if cd "$HOME/.orchestrator/$1" 2>/dev/null && [ -e supervisor.sh ]; '
    'then shift; exec sh ./supervisor.sh "$@"; else echo "state: absent"; echo "state: absent" >&2; fi'
)


class RemoteTraining:
    """The training of one MLflow run on the instance at the other end of an SSH connection.

    Args:
        ssh: the connection; it is opened, and opened again, as needed.
        run_id: the MLflow run; names the directory `~/.orchestrator/<run_id>` on the instance.
        calls: how patient to be with short commands; `connect_seconds` is for one try to connect.
        following: how patient to be while the output is followed. A connection without a sign of life for
            `answer_seconds` is given up; after `connect_seconds` without one, the caller's `check` is asked; a login
            that is refused for `total_seconds` is final.
    """

    def __init__(
        self,
        ssh: Ssh,
        run_id: str,
        *,
        calls: RetryPolicy = REMOTE_CALLS,
        following: RetryPolicy = REMOTE_FOLLOWING,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run_id):
            raise ValueError(f"not an MLflow run ID: {run_id!r}")
        self._ssh = ssh
        self._run_id = run_id
        self._calls = calls
        self._following = following

    def start(
        self,
        command: Sequence[Argument],
        *,
        environment: Mapping[str, str],
        deadline: datetime,
        files: Sequence[JobFile] = (),
        user: str | None = None,
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
            files: what the command finds in its directory.
            user: the login that it gets; where that or sudo is missing, and for None, it gets ours.
            check: called after each loss of the connection, before another try; raises when that is in vain.

        Returns:
            Whether this call started it; False when an earlier one did, which is left as it was.

        Raises:
            SshError: it could not be started, the login runs something else than what it is given, or the instance was
                not reached three times. The environment goes only to a login that has taken the supervisor.
            ValueError: no program can be given this command or environment (see `job.py`).
        """
        job = job_file(command, environment, files)
        seconds = max(0, math.ceil((deadline - datetime.now(UTC)).total_seconds()))
        for name in _FILES:
            content = (_HERE / name).read_bytes()
            upload = ["sh", "-c", _UPLOAD, "sh", self._run_id, str(len(content)), name]
            self._checked(upload, stdin=content, check=check, answers=_UPLOADED)
        arguments = (str(seconds), str(len(job)), *([user] if user else []))
        started = self._call("start", *arguments, stdin=job, check=check, answers=_STARTED)
        if started["as_login"]:
            _log.warning(
                f"The training runs as the login of SSH_USER: the instance has no user TRAINING_USER={user}, or "
                "`sudo -n` cannot become it; its deadline is kept from outside only"
            )
        return started["how"] == "started"

    def state(self) -> TrainingExit | Literal["absent", "running"]:
        """What the instance knows of this training; `absent` when it was never started there.

        Raises:
            SshError: the instance was not reached three times, or its login runs something else than what it is given.
        """
        state = self._call("state", answers=_STATES)[0]
        return TrainingExit.parse(state) or ("running" if state == "running" else "absent")

    def follow(
        self,
        write: Callable[[str], object],
        *,
        check: Callable[[], object] = lambda: None,
        offset: int = 0,
        most_behind: Callable[[], int | None] = lambda: None,
        skipped: Callable[[int], object] = lambda _: None,
    ) -> TrainingExit:
        """Pass on the training's output as it comes, until its end, over any number of broken connections.

        Memory does not grow with the output: pieces are passed on as they arrive, lines or not. Bytes that
        are not UTF-8 become U+FFFD.

        Args:
            write: takes each piece of the output, stdout and stderr in the order they were written.
            check: called after each loss, as soon as it is noticed, and each vain try to reconnect; raises when waiting
                is in vain, because the instance is gone.
            offset: in bytes, where to begin in the output; 0 tells all of it again.
            most_behind: how many bytes may wait on the instance; of more, all but the last ones are skipped. So the end
                of a training that floods its output is noticed in time. None: nothing is skipped.
            skipped: takes the number of bytes that were skipped before the next piece.

        Raises:
            HostKeyMismatch: another machine answers at that address now.
            SshRefused: the login is refused for too long, and `check` finds nothing wrong.
            SshError: the login runs something else than what it is given, several times in a row.
        """
        output = _SupervisorOutput(write, offset)
        pause = 0.0
        strange_ends: list[tuple[float, int | None]] = []
        while True:
            try:
                if not self._ssh.connected:
                    self._ssh.connect(deadline_seconds=self._following.connect_seconds)
                training_exit = self._follow_once(output, most_behind)
                if training_exit is not None:
                    output.finish()
                    return training_exit
                if count := output.skip():
                    skipped(count)
                    continue
                strange_ends.append((time.monotonic(), output.exit_status))
                if output.begun:
                    strange_ends.clear()
                elif self._is_no_loss(strange_ends):
                    raise self._not_ours(output.noise, output.complaints, status=output.exit_status)
                raise SshUnreachable("the command that reads the output was ended on the instance")
            except (SshUnreachable, SshRefused) as error:
                now = time.monotonic()
                if output.lost_at is None:
                    output.lost_at, pause = now, self._following.first_pause_seconds
                    _log.warning(
                        f"Connection to the instance lost, reconnecting: {error}. The training goes on without us"
                    )
                check()
                if isinstance(error, SshRefused) and now - output.lost_at > self._following.total_seconds:
                    raise
            threading.Event().wait(pause)
            pause = min(2 * pause, self._following.longest_pause_seconds)

    def stop(self, *, grace_seconds: int = 5) -> TrainingExit | None:
        """End the training and all its processes: asked by SIGTERM first, then by SIGKILL.

        Args:
            grace_seconds: time between the two, in seconds.

        Returns:
            How it ended, maybe before; None when it was never started there.

        Raises:
            SshError: the instance was not reached three times.
        """
        stopped = self._call("stop", str(grace_seconds), extra_seconds=grace_seconds + 20, answers=_STATES)
        return TrainingExit.parse(stopped[0])

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the output, of its last 64 kB, unmasked.

        Args:
            count: how many lines at most.

        Raises:
            SshError: the instance was not reached three times.
        """
        answer = self._run(self._argv("last", str(count)))
        text = answer.stdout.decode(errors="replace")
        return text.removesuffix("\n").split("\n")[-count:] if text else []

    def _follow_once(self, output: _SupervisorOutput, most_behind: Callable[[], int | None]) -> TrainingExit | None:
        behind = most_behind()

        def noticed(part: Callable[[bytes], None]) -> Callable[[bytes], None]:
            def on_data(data: bytes) -> None:
                part(data)
                if output.begun and output.lost_at is not None:
                    seconds = time.monotonic() - output.lost_at
                    output.lost_at = None
                    _log.info(f"Connected again to the instance after {seconds:.0f} s; no output was missed")
                if behind is None and most_behind() is not None:
                    raise _SkipAheadError

            return on_data

        output.begin()
        try:
            output.exit_status = self._ssh.stream(
                self._argv("follow", str(output.offset), "" if behind is None else str(behind)),
                on_stdout=noticed(output.on_stdout),
                on_stderr=noticed(output.on_stderr),
                silence_seconds=self._following.answer_seconds,
            )
        except _SkipAheadError:
            return self._follow_once(output, most_behind)
        return TrainingExit("lost") if output.state == "absent" else TrainingExit.parse(output.state or "unknown")

    def _is_no_loss(self, strange_ends: Sequence[tuple[float, int | None]]) -> bool:
        """Whether commands that ended in a row without a word of the supervisor were not run at all.

        A machine that shuts down or has no memory left kills what is started on it: for a while, this proves nothing.
        """
        if len(strange_ends) < _STRANGE_ENDS:
            return False
        (first, _), (last, _) = strange_ends[0], strange_ends[-1]
        all_well = all(status == 0 for _, status in strange_ends[-_STRANGE_ENDS:])
        return all_well or last - first > self._following.total_seconds

    def _argv(self, verb: str, *arguments: str) -> list[str]:
        return ["sh", "-c", _CALL, "sh", self._run_id, verb, *arguments]

    def _call(
        self,
        verb: str,
        *arguments: str,
        answers: re.Pattern[str],
        stdin: bytes = b"",
        extra_seconds: float = 0,
        check: Callable[[], object] = lambda: None,
    ) -> re.Match[str]:
        argv = self._argv(verb, *arguments)
        return self._checked(argv, stdin=stdin, extra_seconds=extra_seconds, check=check, answers=answers)

    def _checked(
        self,
        argv: Sequence[str],
        *,
        answers: re.Pattern[str],
        stdin: bytes = b"",
        extra_seconds: float = 0,
        check: Callable[[], object] = lambda: None,
    ) -> re.Match[str]:
        """Run something that may be run twice, and that answers with one of these states."""
        answer = self._run(argv, stdin=stdin, extra_seconds=extra_seconds, check=check)
        found = answers.fullmatch(_state_in(answer))
        if found is None:
            raise self._not_ours(answer.stdout, answer.stderr, stdin=stdin)
        return found

    def _run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        extra_seconds: float = 0,
        check: Callable[[], object] = lambda: None,
    ) -> Completed:
        def before_another_try(_: tenacity.RetryCallState) -> None:
            check()

        retrying = self._calls.retrying(
            retry=tenacity.retry_if_exception_type(SshUnreachable), before_sleep=before_another_try
        )
        answer = retrying(self._once, argv, stdin=stdin, timeout_seconds=self._calls.answer_seconds + extra_seconds)
        if answer.exit_status != 0:
            raise self._not_ours(answer.stdout, answer.stderr, stdin=stdin, status=answer.exit_status)
        return answer

    def _not_ours(self, stdout: bytes, stderr: bytes, *, stdin: bytes = b"", status: int | None = 0) -> SshError:
        advice = login_advice(stdout, stderr)
        words = login_words(stdout, stderr, stdin=stdin)
        if status == 0:
            return SshError(
                "the login of SSH_USER does not run the command that it is given, and exits with status 0: "
                f"{words}; {advice or _LOOK_AT_THE_LOGIN}"
            )
        ended = "killed by a signal" if status is None else f"status {status}"
        return SshError(
            f"the supervisor of the training could not work on the instance ({ended}): {words}; "
            f"{advice or 'check the disk (ROOT_VOLUME_GB), the image AMI_ID and SSH_USER'}"
        )

    def _once(self, argv: Sequence[str], *, stdin: bytes, timeout_seconds: float) -> Completed:
        if not self._ssh.connected:
            self._ssh.connect(deadline_seconds=self._calls.connect_seconds)
        return self._ssh.run(argv, stdin=stdin, timeout_seconds=timeout_seconds)


class _SkipAheadError(Exception):
    """From here on, not all of the output is wanted."""


class _SupervisorOutput:
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
        self.noise = b""
        self.complaints = b""
        self.exit_status: int | None = None

    def on_stdout(self, data: bytes) -> None:
        if not self.begun:  # what a login shell's profile prints comes before the mark
            before = self._before
            noise, mark, data = (before + data).partition(_LOG_BEGINS)
            self.begun, self._before = bool(mark), noise[-len(_LOG_BEGINS) :]
            self.noise = (self.noise + noise[len(before) :])[-_KEPT_NOISE:]
        self.offset += len(data)
        if text := self._decoder.decode(data):
            self._write(text)

    def on_stderr(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-1024:]
        if not self.begun:
            self.complaints = (self.complaints + data)[-_KEPT_NOISE:]
        for line in lines:
            if line.startswith(_STATE.encode()):
                self.state = line.decode(errors="replace").removeprefix(_STATE)

    def skip(self) -> int:
        """Go to where the supervisor says that the last of the output begins; how many bytes are left out by that."""
        found = re.fullmatch(r"skip ([0-9]{1,18})", self.state)
        count = int(found[1]) - self.offset if found else 0
        if count <= 0:
            return 0
        self.finish()
        self._decoder.reset()
        self.offset += count
        return count

    def finish(self) -> None:
        """The end of the log: a character that was begun is not completed any more."""
        if text := self._decoder.decode(b"", final=True):
            self._write(text)


def _state_in(answer: Completed) -> str:
    """The last state that was told, whatever a login shell prints before and after it."""
    state = answer.stdout.decode(errors="replace").rpartition(_STATE)[2]
    return state.partition("\n")[0].strip()
