"""Health and metrics on PostgreSQL: read as they are on SQLite, and an outage is an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import dagster as dg
import pytest

from orchestrator.operate.web.dagster_view import DagsterView
from orchestrator.operate.web.health import HealthPage
from orchestrator.operate.web.metrics import MetricsPage, families
from orchestrator.operate.web.metrics.families import MetricSource
from orchestrator.operate.web.metrics.of_dagster import DagsterMetrics
from orchestrator.operate.web.refreshed import CachePolicy
from orchestrator_tests.storage.conftest import OpenInstance
from orchestrator_tests.support.dagster_internals import EmptyWorkspaceTarget, WorkspaceProcessContext
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@dg.op
def step() -> None: ...


@dg.job
def churn_training() -> None:
    step()


@pytest.fixture
def view(postgres: Postgres, open_instance: OpenInstance) -> Iterator[DagsterView]:
    with (
        open_instance(postgres.url(postgres.new_database())) as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget(), version="test") as context,
    ):
        instance.optimize_for_webserver(15_000, 3_600, 20)
        yield DagsterView(context)


def test_runs_are_counted(view: DagsterView) -> None:
    counted = families.Accumulated()
    policies = {MetricSource.DAGSTER: CachePolicy(fresh=0, wait=60, stale=60)}
    page = MetricsPage({MetricSource.DAGSTER: DagsterMetrics(view, counted).look}, counted, policies=policies)
    churn_training.execute_in_process(instance=view.instance)
    view.instance.create_run_for_job(churn_training)
    text = bytes(asyncio.run(page.answer("")).body).decode()
    for sample in (
        'orchestrator_runs{pipeline="churn",status="SUCCESS"} 1.0',
        'orchestrator_runs{pipeline="churn",status="NOT_STARTED"} 1.0',
        'orchestrator_runs_ended_total{pipeline="churn",status="SUCCESS"} 1.0',
        'orchestrator_source_up{source="dagster"} 1.0',
    ):
        assert sample in text


def test_a_database_that_is_away_is_named_and_comes_back(view: DagsterView, postgres: Postgres) -> None:
    page = HealthPage(view, policy=CachePolicy(fresh=0, wait=30, stale=60))

    def missing() -> list[str]:
        found: list[str] = json.loads(bytes(asyncio.run(page.answer(None)).body))["missing"]
        return found

    assert "database" not in missing()
    postgres.stop()
    try:
        until(lambda: "database" in missing(), seconds=120)
    finally:
        postgres.start()
    until(lambda: "database" not in missing(), seconds=120)
