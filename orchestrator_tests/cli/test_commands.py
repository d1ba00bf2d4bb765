"""The command line: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests

from orchestrator.cli.main import main
from orchestrator.operate.signals import ENDING
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.waiting import until

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 90

WORKSPACE = """
load_from:
  - python_file: {relative_path: definitions.py, location_name: orchestrator}
"""

WAITS_FOR_A_FILE = """
from pathlib import Path
import dagster as dg
from orchestrator_tests.support.waiting import until

HERE = Path(__file__).parents[1]

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["1"]))
def patient():
    (HERE / "started").touch()
    until((HERE / "go on").exists, seconds=300)

defs = dg.Definitions([patient], executor=dg.in_process_executor)
"""


class Command:
    """`orchestrator …` as a process of its own."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self._log = cwd / "output"
        settings = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": str(PROJECT)}
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "orchestrator.cli", *words],
                cwd=cwd,
                env=settings,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def await_output(self, text: str) -> None:
        until(lambda: text in self.output or self.process.poll() is not None, seconds=START_SECONDS)
        assert text in self.output, self.output

    def family(self) -> Sequence[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return int(self.process.wait(60))


@contextmanager
def running(*words: str, cwd: Path) -> Iterator[Command]:
    command = Command(*words, cwd=cwd)
    try:
        yield command
    finally:
        for process in command.family() if command.process.is_running() else ():
            process.kill()


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def ports_of(process: psutil.Process) -> set[int]:
    try:
        return {link.laddr.port for link in process.net_connections("tcp") if link.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:  # it had nothing more to do
        return set()


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one asset whose run ends when it is told to."""
    (tmp_path / "workspace.yaml").write_text(WORKSPACE)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (tmp_path / "definitions.py").write_text(WAITS_FOR_A_FILE)
    return tmp_path


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert {"demo", "serve"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("train",), "invalid choice: 'train'"),
        (("serve", "--port", "http"), "'http' is not a port; give a number from 1 to 65535"),
        (("demo", "--port", "65536"), "'65536' is not a port"),
    ],
)
def test_a_wrong_argument_is_explained(
    words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.usefixtures("signals_as_before")
def test_a_port_that_is_taken_is_named_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([command, "--port", str(port)]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"orchestrator: cannot listen on port {port} of 127.0.0.1: ")
    assert complaint.endswith("choose another with --port or --host\n")


@pytest.mark.services
def test_without_any_setting_the_ui_opens_and_the_sensor_says_what_is_missing(tmp_path: Path) -> None:
    port = free_port()
    with running("serve", "--port", str(port), cwd=tmp_path) as command:
        command.await_output(f"Dagster runs on http://127.0.0.1:{port}")
        assert f"DAGSTER_HOME is {tmp_path / '.dagster'}, configured by {PROJECT / 'dagster.yaml'}" in command.output
        assert "the UI has no login" not in command.output  # nobody but us reaches it
        page = requests.get(f"http://127.0.0.1:{port}", timeout=10)
        assert page.ok
        assert "Dagster" in page.text
        with DagsterApi(f"http://127.0.0.1:{port}") as dagster:
            assert dagster.location_error() is None
            complaint = until(lambda: dagster.failed_tick("training_jenkins_sensor") or "")
        assert "JENKINS_URL is not set" in complaint
        assert "JENKINS_TOKEN is not set" in complaint
        family = command.family()
        assert len(family) >= 5  # ourselves, and webserver and daemon with a code server each
        assert command.end() == 128 + signal.SIGTERM
    assert all_gone(family)


@pytest.mark.services
def test_a_training_goes_on_to_its_end_when_serve_is_stopped(project: Path) -> None:
    port = free_port()
    with running("serve", "--port", str(port), cwd=project) as command:
        command.await_output("Dagster runs on")
        with DagsterApi(f"http://127.0.0.1:{port}") as dagster:
            run_id = dagster.launch(asset=["patient"], partition="1")
        until(lambda: (project / "started").exists())
        family = command.family()
        assert command.end(signal.SIGINT) == 128 + signal.SIGINT
        assert "trainings that ran go on to their end by themselves" in command.output
    (project / "go on").touch()
    until(lambda: all_gone(family), seconds=30)
    with dg.DagsterInstance.from_config(str(project / ".dagster")) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.SUCCESS


@pytest.mark.usefixtures("signals_as_before")
def test_a_part_of_dagster_that_ends_ends_serve_with_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "home").mkdir()
    (project / "home" / "dagster.yaml").write_text("no_such_section: 1\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("DAGSTER_HOME", str(project / "home"))
    assert main(["serve", "--port", str(free_port())]) == 1
    complaint = capfd.readouterr().err.splitlines()[-1]
    assert complaint == "orchestrator: dagster-webserver ended with exit status 1; its output above says why"


def test_a_demo_that_is_stopped_while_it_starts_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    with running("demo", "--port", str(free_port()), "--dir", "sandbox", cwd=tmp_path) as command:
        command.await_output("is building")
        family = command.family()
        listening = [port for process in family for port in ports_of(process)]
        assert listening
        assert command.end(signal.SIGHUP) == 128 + signal.SIGHUP
        assert "Traceback" not in command.output
    assert all_gone(family)
    for port in listening:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
