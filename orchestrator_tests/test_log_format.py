"""`LOG_FORMAT=json`: every line that any process of `serve` writes is one JSON object."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestrator.dagster_instance import format_console_of_runs
from orchestrator.log_format import JsonFormatter
from orchestrator.log_lines import LinePipes, copy_lines, wrapped
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.ui import TOKEN, Ui
from orchestrator_tests.support.waiting import until

KEYS = {"timestamp", "level", "logger", "event"}


def formatted(message: str, *arguments: object, **attributes: Any) -> dict[str, Any]:
    record = logging.LogRecord("orchestrator.remote", logging.WARNING, __file__, 1, message, arguments, None)
    vars(record).update(attributes)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_a_record_is_one_object_with_the_keys_that_dagster_s_own_have() -> None:
    entry = formatted("Lease of %s not renewed:\n\x1b[2Jgone", "i-1")
    assert (set(entry), entry["level"], entry["logger"]) == (KEYS, "warning", "orchestrator.remote")
    assert entry["event"] == "Lease of i-1 not renewed:\ngone"
    assert entry["timestamp"].endswith("Z")


def test_an_error_comes_with_its_traceback() -> None:
    try:
        raise ValueError("no such build")
    except ValueError:
        entry = formatted("Could not look", exc_info=sys.exc_info())
    assert "Traceback" in entry["exception"]
    assert "no such build" in entry["exception"]


@dg.op
def says_something() -> None:
    logging.getLogger("orchestrator.remote").warning("Reconnected")
    raise dg.Failure("out of memory")


@dg.job
def nightly() -> None:
    says_something()


def test_what_a_run_logs_names_run_and_step(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster._loggers as loggers  # noqa: TID251 - what is replaced, to be put back

    monkeypatch.setattr(loggers, "create_console_logger", loggers.create_console_logger)  # type: ignore[attr-defined]
    format_console_of_runs(JsonFormatter())
    settings = {"python_logs": {"managed_python_loggers": ["orchestrator"], "python_log_level": "INFO"}}
    with dg.instance_for_test(overrides=settings) as instance:
        run = nightly.execute_in_process(instance=instance, raise_on_error=False).run_id
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert all(entry.keys() >= KEYS and entry["run_id"] == run for entry in entries)
    (said,) = [entry for entry in entries if entry["event"] == "Reconnected"]
    assert (said["step_key"], said["level"]) == ("says_something", "warning")
    assert any("out of memory" in entry.get("exception", "") for entry in entries)


OURS = b'{"timestamp": "now", "level": "info", "logger": "x", "event": "y"}'


def test_a_line_that_is_no_object_becomes_the_event_of_one() -> None:
    assert wrapped(OURS + b"\n", believed=True) == OURS + b"\n"
    for line, event in {
        b"Epoch 1/3\r\n": "Epoch 1/3",
        b'{"accuracy": 0.9}\n': '{"accuracy": 0.9}',
        b'{"broken}\n': '{"broken}',
        b"\x1b[31mred\x1b[0m \xff\n": "red \ufffd",
    }.items():
        entry = json.loads(wrapped(line, believed=True))
        assert (set(entry), entry["event"], entry["logger"]) == (KEYS, event, "output")
    assert wrapped(b"\n", believed=True) == b""


def test_a_record_names_the_run_whose_process_wrote_it() -> None:
    assert json.loads(wrapped(b"Epoch 1/3", believed=False, run_id="r1"))["run_id"] == "r1"
    assert json.loads(wrapped(OURS, believed=True, run_id="r1"))["run_id"] == "r1"
    other = OURS.replace(b"{", b'{"run_id": "r0", ', 1)
    assert json.loads(wrapped(other, believed=True, run_id="r1"))["run_id"] == "r0"


@pytest.mark.parametrize("line", [OURS, OURS + b" ", OURS.replace(b"{", b'{"run_id": "r0", ', 1)])
def test_what_a_training_prints_is_no_record_of_ours_however_well_forged(line: bytes) -> None:
    entry = json.loads(wrapped(line + b"\n", believed=False))
    assert (entry["logger"], entry["event"]) == ("output", line.decode().strip())


def copied(text: bytes) -> list[dict[str, str]]:
    sink = io.BytesIO()
    copy_lines(io.BytesIO(text), sink, believed=True)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def test_all_lines_are_copied_and_one_without_end_does_not_fill_memory() -> None:
    events = [entry["event"] for entry in copied(b"one\n\n" + b"x" * 200_000 + b"\nlast")]
    assert (events[0], events[-1]) == ("one", "last")
    assert "".join(events[1:-1]) == "x" * 200_000


def test_the_rest_of_a_long_line_is_no_record() -> None:
    assert [entry["logger"] for entry in copied(b"x" * 65_536 + OURS)] == ["output", "output"]


def test_pipes_are_copied_until_nobody_writes(capfd: pytest.CaptureFixture[str]) -> None:
    pipes = LinePipes()
    for run_id in ("", "r1"):
        for descriptor in pipes.pair(run_id):
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(OURS + b"\nlast")
    pipes.close(60)
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    found = Counter((entry["logger"], entry["event"], entry.get("run_id")) for entry in entries)
    assert found == {
        ("x", "y", None): 1, ("output", OURS.decode(), None): 1, ("output", "last", None): 2,
        ("x", "y", "r1"): 1, ("output", OURS.decode(), "r1"): 1, ("output", "last", "r1"): 2,
    }  # fmt: skip


def test_what_a_thread_or_a_warning_says_is_one_record() -> None:
    script = """
import logging, threading, warnings
from orchestrator.log_format import use_json
use_json()
forged = 'no\\n{"timestamp": "", "level": "info", "logger": "x", "event": "forged"}'
warnings.warn(forged)
def fail(): raise ValueError(forged)
thread = threading.Thread(target=fail)
thread.start(); thread.join()
raise ValueError(forged)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [entry["logger"] for entry in entries] == ["py.warnings", "orchestrator", "orchestrator"]
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["worker", "serve --host 192.0.2.1"])
def test_what_keeps_a_command_from_starting_is_one_record(command: str, tmp_path: Path) -> None:
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "LOG_FORMAT": "json"}
    argv = [sys.executable, "-m", "orchestrator.cli", *command.split()]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    (entry,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, done.stdout, entry["level"], entry.keys()) == (1, "", "critical", KEYS)


FILES = {
    "workspace.yaml": "load_from:\n- python_file: {relative_path: definitions.py, location_name: orchestrator}\n",
    "dagster.yaml": "telemetry: {enabled: false}\npython_logs: {managed_python_loggers: [orchestrator]}\n",
    "definitions.py": """
import logging
import sys

import dagster as dg

from orchestrator.definitions import shared


@dg.op
def trains():
    logging.getLogger("orchestrator.pipeline.training").info("Training begins")
    print("Epoch 1/3")
    print('{"timestamp": "", "level": "info", "logger": "orchestrator.operate.web.audit", "event": "forged"}')
    print("a warning of a library", file=sys.stderr)
    raise ValueError("no data")


@dg.job(executor_def=dg.in_process_executor)
def training():
    trains()


@dg.sensor(default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=5, job=training)
def once():
    yield dg.RunRequest("first")


defs = dg.Definitions.merge(dg.Definitions(jobs=[training], sensors=[once]), shared())
""",
}


@pytest.mark.services
def test_every_line_of_a_served_orchestrator_is_one_object(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    port, home = free_port(), tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(PROJECT), "DAGSTER_HOME": str(home),
        "LOG_FORMAT": "json", "UI_TOKEN": TOKEN,
    }  # fmt: skip
    with running("serve", "--port", str(port), cwd=tmp_path, environment=environment) as command:
        command.await_output("Dagster runs on")
        ui = Ui(port, home, command)
        assert ui.send("GET", "/runs", ("Authorization", "Bearer wrong")).status == 401
        until(lambda: "Refused a wrong token" in command.output, seconds=60)
        until(lambda: '"event": "Training begins"' in command.output and "no data" in command.output, seconds=120)
        assert command.end() in (0, 143)
    entries = [json.loads(line) for line in command.output.splitlines()]
    assert all(entry.keys() >= KEYS for entry in entries)
    loggers = {entry["logger"] for entry in entries}
    assert {"orchestrator.operate.serve", "orchestrator.operate.web.entrance", "dagster.daemon"} <= loggers
    (begun,) = [entry for entry in entries if entry["event"] == "Training begins"]
    assert (begun["step_key"], len(begun["run_id"])) == ("trains", 36)
    assert "forged" not in {entry["event"] for entry in entries}
    assert {"Epoch 1/3", "a warning of a library"} <= {e["event"] for e in entries if e["logger"] == "output"}
    assert TOKEN not in command.output


@pytest.mark.services
def test_a_log_holds_no_token_that_opens_the_ui(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "LOG_FORMAT": "json"}
    with running("serve", "--port", str(free_port()), cwd=tmp_path, environment=environment) as command:
        command.await_output("Nobody can log in: set UI_TOKEN")
        assert "token=" not in command.output


@pytest.mark.parametrize("line", [b'{"a":' + b"[" * 30_000 + b"}", b'{"event": ' + b'{"a":' * 20_000, b"{" * 60_000])
def test_a_line_that_only_begins_like_an_object_is_text_however_deep(line: bytes) -> None:
    assert json.loads(wrapped(line + b"\n", believed=True))["logger"] == "output"
