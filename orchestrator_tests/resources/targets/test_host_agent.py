"""What happens on an inference host, in this process and with a stand-in for HAProxy's runtime socket; no SSH.

`test_host.py` does the same with HAProxy and OpenSSH themselves, under load.
"""

from __future__ import annotations

import ast
import io
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import pytest

from orchestrator.errors import DeploymentFailed, TargetHeld, TargetUnavailable
from orchestrator.resources.ssh import Completed, Ssh
from orchestrator.resources.targets import HostTarget, InferenceHost
from orchestrator.resources.targets.host_agent import agent_source, deploying
from orchestrator.resources.targets.host_agent.haproxy import Backend
from orchestrator.resources.targets.host_agent.slots import Slot, keep_log, search_path
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.inference_host import served_model
from orchestrator_tests.support.releases import release


class RuntimeSocket:
    """Answers as HAProxy's `stats socket`; its servers are as healthy as they are told to be.

    Attributes:
        states: of the slots: `UP`, `DRAIN` or `MAINT`.
        commands: what has changed them.
    """

    def __init__(self, path: Path) -> None:
        self.states = {"a": "UP", "b": "UP"}
        self.ports = {"a": free_port(), "b": free_port()}
        self.commands: list[str] = []
        runtime = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(runtime.answer(self.rfile.readline().decode().strip()).encode())

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, command: str) -> str:
        words = command.split()
        if command == "show servers state churn":
            rows = [f"2 churn {i} {name} 127.0.0.1 {port}" for i, (name, port) in enumerate(self.ports.items(), 1)]
            return "\n".join(["1", "# be_id be_name srv_id srv_name srv_addr srv_port", *rows, ""])
        if command == "show stat":
            rows = [f"churn,{name},0,0,{state}," for name, state in self.states.items()]
            return "\n".join(["# pxname,svname,qcur,scur,status,", *rows, ""])
        if words[:2] == ["set", "server"]:
            name = words[2].removeprefix("churn/")
            self.states[name] = {"ready": "UP", "drain": "DRAIN", "maint": "MAINT"}[words[4]]
            self.commands.append(f"{name} {words[4]}")
            return "\n"
        return "Can't find backend.\n"


class InProcess:
    """Runs the agent here instead of sending it anywhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, stdin: bytes, timeout_seconds: float) -> Completed:
        size, verb = int(argv[-2]), argv[-1]
        output = io.StringIO()
        with self._monkeypatch.context() as patch:
            patch.setattr(deploying, "SOURCE", stdin[:size].decode())
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin[size:])))
            patch.setattr(sys, "stdout", output)
            deploying.main(verb)
        return Completed(exit_status=0, stdout=output.getvalue().encode(), stderr=b"")


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[RuntimeSocket]:
    with RuntimeSocket(tmp_path / "admin.sock") as running:
        yield running


@pytest.fixture
def target(haproxy: RuntimeSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostTarget]:
    spec = InferenceHost(
        address="host",
        user="models",
        host_key="",
        key_path=tmp_path,
        admin_socket=str(tmp_path / "admin.sock"),
        backend="churn",
        serve=f"{sys.executable} {{model}}/serve.py {{port}}",
        directory=str(tmp_path / "serving"),
        start_seconds=60,
        drain_seconds=5,
    )
    yield HostTarget(spec, connect=lambda: cast(Ssh, InProcess(monkeypatch)))
    for name, port in haproxy.ports.items():
        Slot(str(tmp_path / "serving"), name, ("127.0.0.1", port)).stop()


def version_of(target: HostTarget) -> str:
    found = target.state()
    return found.version if found else ""


def listening(haproxy: RuntimeSocket) -> list[str]:
    def listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return [name for name, port in haproxy.ports.items() if listens(port)]


def test_the_new_model_is_ready_before_the_old_one_is_drained(
    target: HostTarget, haproxy: RuntimeSocket, tmp_path: Path
) -> None:
    assert version_of(target) == ""
    assert target.deploy(release(1), served_model(tmp_path, 1)) is None
    assert (version_of(target), listening(haproxy)) == ("1", ["a"])
    haproxy.commands.clear()
    before = target.deploy(release(2), served_model(tmp_path, 2))
    assert before is not None
    assert before.version == "1"
    assert haproxy.commands == ["b maint", "b ready", "a drain", "a maint"]
    assert (version_of(target), listening(haproxy)) == ("2", ["b"])
    haproxy.commands.clear()
    target.deploy(release(2), served_model(tmp_path, 2))
    assert haproxy.commands == []


def restart(haproxy: RuntimeSocket, directory: Path) -> None:
    """What a restart of the host leaves: files, and no process."""
    for name, port in haproxy.ports.items():
        Slot(str(directory), name, ("127.0.0.1", port)).stop()
        haproxy.states[name] = "UP"


def test_a_host_that_was_started_anew_says_what_it_served_and_not_what_failed_there(
    target: HostTarget, haproxy: RuntimeSocket, tmp_path: Path
) -> None:
    assert target.lost() is None
    target.deploy(release(1), served_model(tmp_path, 1))
    assert target.lost() is None
    with pytest.raises(DeploymentFailed):
        target.deploy(release(2), served_model(tmp_path, 2, kind="rejects"))
    restart(haproxy, tmp_path / "serving")
    assert version_of(target) == ""
    lost = target.lost()
    assert lost is not None
    assert lost.version == "1"
    assert target.deploy(release(1), served_model(tmp_path, 1)) is None
    assert version_of(target) == "1"


def test_what_a_deployment_left_that_did_not_end_is_removed_after_a_while(target: HostTarget, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    for name, age in (("incoming-7", deploying.LEFT_SECONDS + 60), ("incoming-8", 0)):
        (serving / name).mkdir(parents=True)
        (serving / name / "MLmodel").write_text("flavors: {}")
        for path in (serving / name / "MLmodel", serving / name):
            os.utime(path, (time.time() - age,) * 2)
    target.deploy(release(1), served_model(tmp_path, 1))
    assert sorted(path.name for path in serving.glob("incoming-*")) == ["incoming-8"]


def test_a_model_that_does_not_predict_is_stopped_and_the_old_one_untouched(
    target: HostTarget, haproxy: RuntimeSocket, tmp_path: Path
) -> None:
    target.deploy(release(1), served_model(tmp_path, 1))
    for version, kind in ((2, "rejects"), (3, "short"), (4, "crash")):
        haproxy.commands.clear()
        with pytest.raises(DeploymentFailed, match="still serves what it did"):
            target.deploy(release(version), served_model(tmp_path, version, kind=kind))
        assert haproxy.commands == ["b maint", "b maint"]
        assert (version_of(target), listening(haproxy)) == ("1", ["a"])
    with pytest.raises(TargetHeld, match="pipeline 'churn'"):
        target.deploy(release(5, pipeline="other"), served_model(tmp_path, 5))


def test_a_deployment_that_was_killed_between_ready_and_drain_is_ended_by_the_next(
    target: HostTarget, haproxy: RuntimeSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.deploy(release(1), served_model(tmp_path, 1))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Backend, "drain", killed)
        with pytest.raises(KeyboardInterrupt):
            target.deploy(release(2), served_model(tmp_path, 2))
    assert listening(haproxy) == ["a", "b"]
    assert target.state() is None, "two models are in use"
    target.deploy(release(2), served_model(tmp_path, 2))
    assert (version_of(target), len(listening(haproxy))) == ("2", 1)


def test_another_deployment_and_another_backend_are_named(
    target: HostTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served_model(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", _refuse)
        with pytest.raises(TargetUnavailable, match="another deployment is under way"):
            target.deploy(release(2), model)
    with monkeypatch.context() as patch:
        patch.setattr(RuntimeSocket, "answer", lambda *_: "Can't find backend.\n")
        with pytest.raises(TargetUnavailable, match="no backend churn"):
            target.state()


def _refuse(*_: object) -> None:
    raise BlockingIOError


@pytest.mark.parametrize(
    ("example", "rows"),
    [
        ({"inputs": [[1], [2]]}, 2),
        ({"inputs": {"x": [1, 2, 3]}}, 3),
        ({"instances": [1]}, 1),
        ({"dataframe_records": [{}, {}]}, 2),
        ({"dataframe_split": {"columns": ["x"], "data": [[1], [2]]}}, 2),
        ({"inputs": {"x": [1], "y": [1, 2]}}, None),
        ({"inputs": 3}, None),
        ([], None),
    ],
)
def test_the_rows_of_an_input_example(example: object, rows: int | None) -> None:
    assert deploying.rows_of(example) == rows


def test_a_server_s_program_finds_its_neighbours() -> None:
    assert search_path("/opt/models/bin/mlflow models serve").startswith("/opt/models/bin:")


def test_the_program_is_one_text_of_python_3_8_that_imports_nothing_of_ours() -> None:
    tree = ast.parse(agent_source(), feature_version=(3, 8))
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names | {"__future__"}


def test_a_server_that_had_ended_before_anybody_looked_is_not_one_that_runs(tmp_path: Path) -> None:
    slot = Slot(str(tmp_path), "a", ("127.0.0.1", 1))
    (tmp_path / "slots" / "a").mkdir(parents=True)
    (tmp_path / "slots" / "a" / "server.json").write_text('{"pid": 4194305, "birth": null}')
    assert not slot.is_kept()
    slot.stop()


def test_a_log_that_cannot_be_written_leaves_the_server_its_output() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as server:
        copier = threading.Thread(target=keep_log, args=(os.fdopen(reading, "rb"), "/dev/full"))
        copier.start()
        for _ in range(3):
            server.write(b"predicting\n")
    copier.join(60)
    assert not copier.is_alive()
