"""The command line: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests
from click.testing import CliRunner

from orchestrator.cli.demo import demo
from orchestrator.cli.main import main, orchestrator
from orchestrator.cli.program import run
from orchestrator.operate.signals import ENDING
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.demo.__main__ import demo as sandbox_demo
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import all_gone, running, token_in
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

WORKSPACE = """
load_from:
  - python_file: {relative_path: definitions.py, location_name: orchestrator}
"""

WAITS_FOR_A_FILE = """
from pathlib import Path
import dagster as dg
from orchestrator_tests.support.waiting import until

HERE = Path(__file__).parent

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["1"]))
def patient():
    (HERE / "started").touch()
    until((HERE / "go on").exists, seconds=300)

defs = dg.Definitions([patient], executor=dg.in_process_executor)
"""


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


@pytest.mark.parametrize("words", [("-h",), ("--help",), ("demo", "--help"), ("serve", "-h")])
def test_help_is_an_answer_and_no_error(words: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(orchestrator, words)
    assert answer.exit_code == 0
    assert answer.output.startswith("Usage: orchestrator")


def test_help_names_the_commands_and_what_they_do() -> None:
    lines = [line.split(maxsplit=1) for line in CliRunner().invoke(orchestrator, ["--help"]).output.splitlines()]
    assert ["demo", "The whole loop on this machine, in a sandbox."] in lines
    assert ["serve", "Dagster's UI and daemon, for your own settings."] in lines


def test_the_demo_takes_the_same_options_wherever_it_is_started() -> None:
    options = [[(option.opts, option.default) for option in command.params] for command in (demo, sandbox_demo)]
    assert options[0] == options[1] != []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "Missing command; `orchestrator --help` lists"),
        (("train",), "No such command 'train'; `orchestrator --help` lists"),
        (("serve", "--prot", "3001"), "No such option '--prot'"),
        (("serve", "now"), "Got unexpected extra argument (now); `orchestrator serve --help` lists"),
        (("serve", "--port"), "Option '--port' requires an argument"),
        (
            ("serve", "--port", "http"),
            "Invalid value for '--port': 'http' is not a port; give a number from 1 to 65535",
        ),
        (("serve", "--port", "0"), "'0' is not a port"),
        (("demo", "--port", "65536"), "'65536' is not a port"),
        (("demo", "--port", "²"), "'²' is not a port"),
    ],
)
@pytest.mark.usefixtures("signals_as_before")
def test_a_wrong_word_is_explained_in_one_sentence(
    words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("orchestrator: ")
    assert sentence.count("\n") == 1
    assert complaint in sentence


@pytest.mark.usefixtures("signals_as_before")
def test_a_port_that_is_taken_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"orchestrator: cannot listen on port {port} of 127.0.0.1: ")
    assert complaint.endswith("choose another with --port or --host\n")


def test_the_demo_names_a_port_that_is_taken_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running("demo", "--port", str(port), cwd=tmp_path) as command:
            assert command.process.wait(60) == 1
    assert f"orchestrator: cannot listen on port {port} of 127.0.0.1: " in command.output
    assert "Traceback" not in command.output


@pytest.mark.usefixtures("signals_as_before")
def test_without_the_sandbox_the_demo_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    assert main(["demo"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("orchestrator: the demo needs the sandbox, ")
    assert "`make demo`" in sentence


@pytest.mark.usefixtures("signals_as_before")
def test_without_the_extra_the_demo_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("moto", "flask") else found(name))
    assert run(sandbox_demo, []) == 1
    assert capsys.readouterr().err.startswith("orchestrator: the demo needs flask, moto; run `make demo`")


def test_the_command_line_answers_before_anything_heavy_is_imported() -> None:
    heavy = {"dagster", "boto3", "requests", "psutil", "pydantic"}
    program = f"import sys, orchestrator.cli.main; print({heavy!r} & {{*sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


@pytest.mark.services
def test_without_any_setting_the_ui_opens_and_the_sensor_says_what_is_missing(tmp_path: Path) -> None:
    port = free_port()
    with running("serve", "--port", str(port), cwd=tmp_path) as command:
        command.await_output(f"Dagster runs on http://127.0.0.1:{port}")
        assert f"DAGSTER_HOME is {tmp_path / '.dagster'}, configured by {PROJECT / 'dagster.yaml'}" in command.output
        assert requests.get(f"http://127.0.0.1:{port}", timeout=10).status_code == 401
        page = requests.get(f"http://127.0.0.1:{port}/?token={token_in(command.output)}", timeout=10)
        assert page.ok
        assert "Dagster" in page.text
        with DagsterApi(f"http://127.0.0.1:{port}", token=token_in(command.output)) as dagster:
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
        with DagsterApi(f"http://127.0.0.1:{port}", token=token_in(command.output)) as dagster:
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


@pytest.mark.parametrize(
    "command", [["serve"], ["iam-policy"], ["token", "list"], ["token", "add", "ci", "--role", "viewer"]]
)
def test_an_env_file_that_others_may_read_is_refused_with_the_chmod_that_mends_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / ".env").write_text("JENKINS_TOKEN=s3cr3t\n")
    (tmp_path / ".env").chmod(0o644)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"`chmod 600 {tmp_path / '.env'}`" in said
    assert "s3cr3t" not in said
    assert not (tmp_path / "home").exists()
