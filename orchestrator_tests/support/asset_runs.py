"""Runs of `churn/trained_model` inside the test's own process; for tests of the asset, cancels and re-execution."""

from __future__ import annotations

import dagster as dg
import pytest

from orchestrator.definitions import shared
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator_tests.support.attempts import World

JOB = "churn_training"
NODE = "churn__trained_model"
MODEL = dg.AssetKey(["churn", "trained_model"])


def train(
    world: World,
    dagster: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    *,
    settings: dict[str, str],
    config: dict[str, object] | None = None,
    implicit: bool = False,
    pipeline: TrainingPipeline | None = None,
) -> dg.ExecuteInProcessResult:
    """Train build 40 in this process, in a run of the job or as the asset page does.

    Args:
        world: where.
        dagster: what records it.
        monkeypatch: sets the environment.
        settings: on top of the world's own.
        config: what the launchpad says.
        implicit: by the asset page's job.
        pipeline: default: one that asks nothing of its models.
    """
    for name, value in {**world.environment, **settings}.items():
        monkeypatch.setenv(name, value)
    built = (pipeline or TrainingPipeline(name="churn")).build_defs(dg.ComponentTree.for_test().load_context)
    definitions = dg.Definitions.merge(built, shared())
    job = definitions.resolve_implicit_global_asset_job_def() if implicit else definitions.resolve_job_def(JOB)
    return job.execute_in_process(
        instance=dagster,
        partition_key="40",
        asset_selection=[MODEL] if implicit else None,
        run_config={"ops": {NODE: {"config": config}}} if config else None,
        raise_on_error=False,
    )
