"""An inference host as target: the new model comes up beside the old one, and HAProxy moves the requests over.

What happens there is `host_agent`, which is sent over SSH and run by the host's Python. It goes on when the
connection breaks, so that a switch is made or undone whatever happens here.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    DeploymentError,
    DeploymentFailed,
    HostKeyMismatch,
    SshError,
    SshUnreachable,
    TargetHeld,
    TargetUnavailable,
)
from orchestrator.resources.ssh import Ssh, login_words
from orchestrator.resources.targets.host_agent import agent_source
from orchestrator.resources.targets.release import KEPT_RELEASES, ModelFolder, Release, require_holder
from orchestrator.settings.groups import SshSettings

_log = logging.getLogger(__name__)

EXAMPLE = "serving_input_example.json"
"""What MLflow makes of a model's input example: a request that the model has to answer."""

SERVE = "mlflow models serve --model-uri {model} --env-manager local --host {host} --port {port}"

_PIECE = 8 * 2**20
_CALL_SECONDS = 60.0
_STATE_SECONDS = 20.0  # a sensor asks, whose ticks Dagster ends after 60 s
_SPARE_SECONDS = 180.0
_SENT = (
    "import sys; text = sys.stdin.buffer.read(int(sys.argv[1])).decode(); "
    "exec(compile(text, 'host_agent.py', 'exec'), {'__name__': '__main__', 'SOURCE': text})"
)


@dataclass(frozen=True, kw_only=True)
class InferenceHost:
    """A host that serves models, and how it does.

    Attributes:
        address: name or IP address.
        host_key: its public host key, `ssh-ed25519 AAAA...`; no other one is accepted.
        key_path: private key of the login.
        admin_socket: HAProxy's, of `level admin`.
        backend: HAProxy's backend, which has two servers on loopback.
        serve: command that serves a model, with {model}, {host} and {port}.
        directory: where releases are kept; empty: below the login's home.
        health: path that answers 200 once the model can be used.
        predict: path that answers an input example; empty: it is not asked.
        python: Python 3.8 or newer.
        start_seconds: how long a server may take until it is healthy.
        drain_seconds: how long requests that are under way may take.
    """

    address: str
    user: str
    port: int = 22
    host_key: str
    key_path: Path
    admin_socket: str
    backend: str
    serve: str = SERVE
    directory: str = ""
    health: str = "/ping"
    predict: str = "/invocations"
    python: str = "python3"
    start_seconds: float = 300
    drain_seconds: float = 120

    def connect(self) -> Ssh:
        """A connection that is yet to be opened."""
        settings = SshSettings(user=self.user, port=self.port, key_path=self.key_path, host_keys="planted")
        return Ssh(settings, address=self.address, host_key=self.host_key)


class HostTarget:
    """A backend of HAProxy on an inference host, whose two servers are slots for a model each.

    Args:
        host: where, and how.
        keep: how many releases are kept.
        connect: opens SSH.
    """

    def __init__(
        self, host: InferenceHost, *, keep: int = KEPT_RELEASES, connect: Callable[[], Ssh] | None = None
    ) -> None:
        self._host = host
        self._keep = max(2, keep)
        self._connect = connect or host.connect

    @property
    def place(self) -> str:
        """Host and backend."""
        return f"backend {self._host.backend} of inference host {self._host.address}"

    def state(self) -> Release | None:
        """What HAProxy sends requests to; see `Target`."""
        with self._connected() as ssh:
            answer = self._call(ssh, "state", {}, seconds=_STATE_SECONDS)
        slots, record = answer["slots"], answer["record"]
        if len(slots) > 1:
            _log.warning(f"Found two models in use in {self.place}: a deployment there did not end")
            return None
        return Release.parse(record, place=self.place) if record else None

    def lost(self) -> Release | None:
        """What was served last, of a host that serves nothing: it was started anew, say; see `Target`."""
        with self._connected() as ssh:
            answer = self._call(ssh, "state", {}, seconds=_STATE_SECONDS)
        return Release.parse(answer["last"], place=self.place) if not answer["slots"] and answer["last"] else None

    def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
        """Start the model in the free slot, try it, move the requests over, and stop the old one; see `Target`."""
        if model.read(EXAMPLE) is None:
            _log.warning(f"Tried no prediction: {release.title} has no {EXAMPLE}; log it with an input example")
        files = [asdict(file) for file in model.files]
        call = {
            "folder": release.version,
            "files": files,
            "record": release.now().dump(),
            "take_over": take_over,
            "keep": self._keep,
            "serve": self._host.serve,
            "health": self._host.health,
            "predict": self._host.predict,
            "example": EXAMPLE,
            "start_seconds": self._host.start_seconds,
            "drain_seconds": self._host.drain_seconds,
        }
        with self._connected() as ssh:
            said = self._call(ssh, "missing", call, release=release, seconds=_CALL_SECONDS + model.size / 10**7)
            missing = [file for file in model.files if file.path in set(said["missing"])]
            size = sum(file.size for file in missing)
            if size > said["free"]:
                raise TargetUnavailable(f"{self.place} has {said['free']} bytes free, and the model needs {size}")
            for file in missing:
                self._send(ssh, release.version, model.folder, file.path)
            _log.info(f"Sent {len(missing)} files ({size} bytes) to {self.place}")
            host = self._host
            longest = host.start_seconds + 2 * host.drain_seconds + _SPARE_SECONDS + 2 * model.size / 10**7
            said = self._call(ssh, "switch", call, release=release, seconds=longest)
        _log.info(f"Put {release.title} into use in {self.place}, server {said['slot']}")
        return Release.parse(said["before"], place=self.place) if said["before"] else None

    def _send(self, ssh: Ssh, folder: str, root: Path, path: str) -> None:
        offset = 0
        with (root / path).open("rb") as file:
            while True:
                piece = file.read(_PIECE)
                if not piece and offset:
                    return
                call = {"folder": folder, "path": path, "offset": offset}
                self._call(ssh, "put", call, body=piece)
                offset += len(piece)
                if len(piece) < _PIECE:
                    return

    def _call(
        self,
        ssh: Ssh,
        verb: str,
        call: Mapping[str, object],
        *,
        body: bytes = b"",
        release: Release | None = None,
        seconds: float = _CALL_SECONDS,
    ) -> dict[str, Any]:
        host = self._host
        directory = host.directory or f"~/.orchestrator/serving/{host.backend}"
        place = {"directory": directory, "admin_socket": host.admin_socket, "backend": host.backend}
        source = agent_source()
        stdin = b"%s%s\n%s" % (source, json.dumps({**place, **call}).encode(), body)
        done = ssh.run([host.python, "-c", _SENT, str(len(source)), verb], stdin=stdin, timeout_seconds=seconds)
        try:
            answer = json.loads(done.stdout)
            if not isinstance(answer, dict):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            raise TargetUnavailable(
                f"{self.place} did not run `{host.python}` as it should (status {done.exit_status}): "
                f"{login_words(done.stdout, done.stderr)}"
            ) from None
        if "refused" in answer:
            raise self._refusal(answer, call, release)
        return answer

    def _refusal(
        self, answer: Mapping[str, str], call: Mapping[str, object], release: Release | None
    ) -> DeploymentError:
        kind, sentence, log = answer["refused"], answer["sentence"], answer["log"]
        end = f"; the last lines of its log:\n{log}" if log else ""
        if kind == "other" and release is not None:
            try:
                require_holder(
                    Release.parse(sentence, place=self.place), release.holder, place=self.place, take_over=False
                )
            except TargetHeld as error:
                return error
        if kind == "model":
            return DeploymentFailed(f"{self.place} still serves what it did, because {sentence}{end}")
        if kind == "held":
            return TargetHeld(f"{self.place}: {sentence}")
        return TargetUnavailable(f"{self.place}: {sentence}{end}")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Ssh]:
        try:
            with self._connect() as ssh:
                ssh.connect()
                yield ssh
        except HostKeyMismatch as error:
            raise DeploymentError(
                f"{self.place} is not the machine that `host_key` says: nothing was sent to it ({error})"
            ) from error
        except SshUnreachable as error:
            raise TargetUnavailable(f"{self.place} cannot be reached, check `address` and `port`: {error}") from error
        except SshError as error:
            raise TargetUnavailable(f"{self.place} lets nobody in, check `user` and `key_path`: {error}") from error
