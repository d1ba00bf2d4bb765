"""dagster.yaml: what it asks of Dagster is what Dagster understands by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg

from orchestrator_tests.support.dagster_internals import InstigatorType, TickStatus

DAGSTER_YAML = Path(__file__).parents[1] / "dagster.yaml"


def test_ticks_are_not_kept_for_ever(tmp_path: Path) -> None:
    shutil.copy(DAGSTER_YAML, tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        for kind in (InstigatorType.SENSOR, InstigatorType.SCHEDULE):
            days = instance.get_tick_retention_settings(kind)
            assert days[TickStatus.SKIPPED] == 1
            assert days[TickStatus.SUCCESS] == days[TickStatus.FAILURE] == 90
