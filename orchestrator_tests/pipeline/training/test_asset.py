"""The asset and its steps in Dagster: what the launchpad changes, what is recorded, and how a run fails."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from orchestrator.resources.jenkins.answers import Build
from orchestrator_tests.support.asset_runs import NODE, train
from orchestrator_tests.support.attempts import World


@pytest.mark.services
@pytest.mark.parametrize("implicit", [False, True], ids=["run of the job", "asset page"])
def test_a_build_that_jenkins_has_deleted_is_trained_as_the_launchpad_says(
    world: World,
    dagster: dg.DagsterInstance,
    recorded: Build,
    monkeypatch: pytest.MonkeyPatch,
    implicit: bool,
) -> None:
    program = world.script("program", "#!/usr/bin/env python\nimport json, sys\nprint('ARGV', json.dumps(sys.argv))\n")
    result = train(
        world,
        dagster,
        monkeypatch,
        settings={
            **program,
            "INSTANCE_TYPES_ALLOWED": "m5.large",
            "MLPROJECT_PARAMETERS": json.dumps({"note": "settings", "status": "0"}),
        },
        config={
            "entry_point": "other",
            "parameters": {"note": "launchpad"},
            "version": "v1",
            "instance_type": "m5.large",
            "max_minutes": 7,
        },
        implicit=implicit,
    )
    assert result.success
    [event] = result.asset_materializations_for_node(NODE)
    assert event.partition == "40"
    run = world.mlflow.run(str(event.metadata["MLflow run ID"].value))
    assert run.status == "FINISHED"
    assert run.params == {"note": "launchpad", "status": "0"}
    assert run.tags["mlflow.source.git.commit"] == "v1"
    assert run.tags["mlflow.project.entryPoint"] == "other"
    assert run.tags["dagster_run_id"] == result.run_id
    assert run.tags["jenkins.url"] == recorded.url
    assert event.metadata["instance type"].value == "m5.large"
    instance = world.ec2.describe(str(event.metadata["instance"].value))
    assert not instance.alive
    assert instance.power_off_at is not None
    assert 7 * 60 <= (instance.power_off_at - instance.launched_at).total_seconds() <= 9 * 60
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == run.id
    [check] = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == ("logged_something", False, dg.AssetCheckSeverity.WARN)
    assert run.id in str(check.description)
    run_tags = dagster.get_run_by_id(result.run_id)
    assert run_tags is not None
    assert run_tags.tags["orchestrator/trained"] == run.id
    assert "orchestrator/lease-until" in run_tags.tags


@pytest.mark.services
def test_a_failed_training_fails_its_step_with_one_description_and_is_not_retried(
    world: World, dagster: dg.DagsterInstance, recorded: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = world.script("failing", "#!/bin/sh\necho 'RuntimeError: no such column: price'\nexit 4\n")
    result = train(world, dagster, monkeypatch, settings=program)
    assert not result.success
    failure = result.failure_data_for_node(f"{NODE}.train")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "build 40: the training exited with status 4 (RuntimeError: no such column: price)" in str(
        failure.user_failure_data.description
    )
    assert world.ec2.find(pipeline="churn", partition="40") is None


def test_missing_settings_fail_the_first_step_before_anything_is_launched(
    world: World, dagster: dg.DagsterInstance, recorded: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(world, dagster, monkeypatch, settings={"AMI_ID": "", "KEY_PAIR_NAME": ""})
    failure = result.failure_data_for_node(f"{NODE}.resolve")
    assert failure is not None
    assert failure.user_failure_data is not None
    described = str(failure.user_failure_data.description)
    assert "AMI_ID is not set" in described
    assert "KEY_PAIR_NAME is not set" in described
    assert ".env.example" in described
