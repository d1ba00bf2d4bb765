"""The whole loop on PostgreSQL: in a schema, through a PgBouncer, and while the server is away."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator_sandbox.demo.display import DemoState, LineView
from orchestrator_sandbox.demo.loop import DemoLoop
from orchestrator_sandbox.demo.outcome import DemoOutcome
from orchestrator_sandbox.demo.project import Commit
from orchestrator_sandbox.stack import Stack
from orchestrator_tests.support.postgres import USER, Postgres, pgbouncer

TRAINING = """
import json, os, time, urllib.request
time.sleep(float(os.environ.get("TRAINING_SECONDS", "0")))
point = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "accuracy", "value": 0.5, "timestamp": int(time.time() * 1000)}
url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
urllib.request.urlopen(urllib.request.Request(url, json.dumps(point).encode(), {"Content-Type": "application/json"}))
"""
PROJECT = 'name: light\nentry_points:\n  main:\n    command: "python train.py"\n'


def _edit(tree: Path) -> None:
    (tree / "tests" / "test_model.py").write_text("def test_it():\n    pass\n")
    (tree / "MLproject").write_text(PROJECT)
    (tree / "train.py").write_text(TRAINING)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


class Watching(LineView):
    """Lets a server be away for a while as soon as the run is in a phase.

    Args:
        server: which; None: it stays.
        phase: name of a step.
        seconds: how long.
    """

    def __init__(self, server: Postgres | None = None, phase: str = "", *, seconds: float = 0) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.outages = 0
        self._server, self._phase, self._seconds = server, phase, seconds

    def show(self, scene: DemoState) -> None:
        super().show(scene)
        steps = {step.name: step.status for step in scene.run.steps} if scene.run else {}
        if self._server and not self.outages and steps.get(self._phase) == "IN_PROGRESS":
            self.outages += 1
            self._server.stop()
            time.sleep(self._seconds)  # an outage lasts, there is nothing to await
            self._server.start()


def train(directory: Path, url: str, view: Watching) -> DemoOutcome:
    """Train one build with Dagster's storage at that address."""
    with Stack(directory, settings={"DAGSTER_POSTGRES_URL": url, "TRAINING_SECONDS": "1"}) as stack:
        loop = DemoLoop(stack, started=time.monotonic())
        loop.first_model(view, commits=[Commit("light", _edit)])
        assert not list((directory / "dagster").rglob("*.db"))
        return loop.outcome


@pytest.mark.services
def test_in_a_schema_a_build_is_trained_although_the_server_is_away_meanwhile(server: Postgres, tmp_path: Path) -> None:
    _train_with_an_outage(server, tmp_path, phase="train", seconds=10)


@pytest.mark.services
def test_a_build_is_trained_through_a_pgbouncer(server: Postgres, tmp_path: Path) -> None:
    database = server.new_database()
    server.query("CREATE SCHEMA orch", database=database)
    server.query(f"ALTER ROLE {USER} IN DATABASE {database} SET search_path = orch")
    with pgbouncer(server) as port:
        outcome = train(tmp_path, server.url(database, port=port), Watching())
    assert outcome.faults() == []
    assert server.query("SELECT status FROM orch.runs", database=database) == [("SUCCESS",)]


@pytest.mark.matrix
@pytest.mark.parametrize("phase", ["resolve", "provision", "train", "terminate", "record"])
def test_a_minute_without_postgresql_costs_nothing_in_any_phase(phase: str, server: Postgres, tmp_path: Path) -> None:
    _train_with_an_outage(server, tmp_path, phase=phase, seconds=60)


def _train_with_an_outage(server: Postgres, directory: Path, *, phase: str, seconds: float) -> None:
    database = server.new_database()
    server.query("CREATE SCHEMA orch", database=database)
    view = Watching(server, phase, seconds=seconds)
    outcome = train(directory, f"{server.url(database)}?options=-csearch_path%3Dorch", view)
    assert view.outages == 1
    assert outcome.faults() == []
    assert server.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=database) == [(0,)]
    assert server.query("SELECT status FROM orch.runs", database=database) == [("SUCCESS",)]
    query = "SELECT dagster_event_type, step_key FROM orch.event_logs WHERE dagster_event_type LIKE 'STEP_S%'"
    steps = server.query(query, database=database)
    assert len(steps) == len(set(steps))  # none twice, and none written twice
