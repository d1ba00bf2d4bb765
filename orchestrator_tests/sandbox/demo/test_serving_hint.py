"""The demo's model is served and asked by the very commands that the demo prints; minutes, for `make test-matrix`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import all_gone, running
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.matrix

HINT = "Serve the model that is in use, and have it predict:\n"


def test_the_printed_commands_serve_the_model_and_ask_it(tmp_path: Path) -> None:
    with running("demo", "--port", str(free_port()), "--dir", "sandbox", cwd=tmp_path) as demo:
        until(lambda: "5001/invocations" in demo.output or demo.process.poll() is not None, seconds=600, every=1)
        assert HINT in demo.output, demo.output
        serve, ask = (line.strip() for line in demo.output.partition(HINT)[2].splitlines()[:2])
        with (tmp_path / "served").open("wb") as log:
            server = psutil.Popen(serve, shell=True, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
            try:
                answer = until(lambda: predictions(ask), seconds=300, every=1)
            finally:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)
        family = demo.family()
        demo.end(signal.SIGINT)
    example = json.loads((tmp_path / "sandbox/in-use/digits/current/serving_input_example.json").read_text())
    [rows] = [value if isinstance(value, list) else value["data"] for value in example.values()]
    assert len(answer["predictions"]) == len(rows)
    assert all_gone(family)


def predictions(command: str) -> dict[str, list[float]]:
    """What the server answers; empty: it is not up yet."""
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}
