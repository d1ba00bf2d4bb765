"""RUN_LAUNCHER=ecs with the task definition of deploy/ecs, on moto's ECS: launched, looked after, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from moto import mock_aws

from orchestrator.operate.home import prepare_home
from orchestrator.settings.groups import all_settings, is_secret
from orchestrator_tests.support.celery_job import waiting
from orchestrator_tests.support.dagster_internals import LaunchRunContext, WorkerStatus, starting_event
from orchestrator_tests.support.dockerfile import PROJECT

REGION = "eu-central-1"
TASK_DEFINITION = json.loads((PROJECT / "deploy/ecs/run.json").read_text())


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, text in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, text)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    boto3.setup_default_session()
    with mock_aws():
        yield boto3.client("ecs")
    boto3.setup_default_session()


@pytest.fixture
def dagster(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    ec2 = boto3.resource("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
    ec2.meta.client.modify_vpc_attribute(VpcId=vpc.id, EnableDnsHostnames={"Value": True})
    subnet = vpc.create_subnet(CidrBlock="10.0.1.0/24")
    group = vpc.create_security_group(GroupName="orchestrator", Description="runs")
    aws.create_cluster(clusterName="orchestrator")
    arn = aws.register_task_definition(**TASK_DEFINITION)["taskDefinition"]["taskDefinitionArn"]
    config = {
        "task_definition": arn,
        "container_name": "run",
        "use_current_ecs_task_config": False,
        "run_task_kwargs": {
            "cluster": "orchestrator",
            "launchType": "FARGATE",
            "networkConfiguration": {"awsvpcConfiguration": {"subnets": [subnet.id], "securityGroups": [group.id]}},
        },
    }
    monkeypatch.setenv("RUN_LAUNCHER", "ecs")
    monkeypatch.setenv("RUN_LAUNCHER_CONFIG", json.dumps(config))
    monkeypatch.chdir(tmp_path)
    prepare_home(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_a_run_is_a_task_that_is_looked_after_and_ended(dagster: dg.DagsterInstance, aws: Any) -> None:
    config = {"ops": {"wait_for_file": {"config": {"folder": "/nowhere"}}}}
    made = dagster.create_run_for_job(
        waiting, run_config=config, job_code_origin=dg.reconstructable(waiting).get_python_origin()
    )
    dagster.report_dagster_event(starting_event(made), run_id=made.run_id)

    def run() -> dg.DagsterRun:
        found = dagster.get_run_by_id(made.run_id)
        assert found is not None
        return found

    dagster.run_launcher.launch_run(LaunchRunContext(dagster_run=run(), workspace=None))
    (arn,) = aws.list_tasks(cluster="orchestrator")["taskArns"]
    (task,) = aws.describe_tasks(cluster="orchestrator", tasks=[arn])["tasks"]
    assert task["taskDefinitionArn"].endswith("task-definition/orchestrator-run:1")
    (override,) = task["overrides"]["containerOverrides"]
    assert override["command"][:3] == ["dagster", "api", "execute_run"]
    assert made.run_id in override["command"][3]
    assert len(json.dumps(task["overrides"])) < 8192  # what ECS takes
    assert dagster.run_launcher.check_run_worker_health(run()).status == WorkerStatus.RUNNING
    assert dagster.run_launcher.terminate(made.run_id)
    assert run().status == dg.DagsterRunStatus.CANCELING  # so that what is interrupted is no dead worker
    (task,) = aws.describe_tasks(cluster="orchestrator", tasks=[arn])["tasks"]
    assert task["desiredStatus"] == "STOPPED"


def test_the_task_definition_gives_a_run_time_to_clean_up_and_holds_no_secret() -> None:
    (container,) = TASK_DEFINITION["containerDefinitions"]
    assert container["stopTimeout"] == 120  # Fargate's most; the default of 30 s may cut off the clean-up
    assert int(TASK_DEFINITION["memory"]) >= 512
    plain = {entry["name"] for entry in container["environment"]}
    assert plain & {name for name, info in all_settings().items() if is_secret(info)} == set()
    assert "DAGSTER_POSTGRES_URL" not in plain
    assert all(entry["valueFrom"].startswith("arn:aws:secretsmanager:") for entry in container["secrets"])
    known = {*all_settings(), "DAGSTER_CURRENT_IMAGE", "DAGSTER_POSTGRES_URL", "AWS_DEFAULT_REGION"}
    assert (plain | {entry["name"] for entry in container["secrets"]}) - known == set()
    assert container["image"] == next(
        entry["value"] for entry in container["environment"] if entry["name"] == "DAGSTER_CURRENT_IMAGE"
    )
