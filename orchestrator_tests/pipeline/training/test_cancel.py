"""A run that is cancelled in any of its steps ends as cancelled, without an instance and with its MLflow run closed."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.errors import TrainingFailed
from orchestrator.pipeline.training import lease
from orchestrator.pipeline.training.cancellation import Cancellation
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2
from orchestrator.resources.jenkins import Build
from orchestrator.resources.mlflow import Mlflow
from orchestrator_sandbox.proxy import HUNG_UP, REFUSED, FaultyProxy, Request
from orchestrator_tests.support import attempts
from orchestrator_tests.support.asset_runs import train
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned

pytestmark = pytest.mark.services

SLEEPS = "exec sleep 600\n"
IMPORTS = "import json, os, sys, urllib.request\n"
# As `mlflow run` does at its end.
SAYS_FINISHED = (
    "run = sys.argv[sys.argv.index('--run-id') + 1]\n"
    "ended = json.dumps({'run_id': run, 'status': 'FINISHED'}).encode()\n"
    "update = os.environ['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/runs/update'\n"
    "urllib.request.urlopen(urllib.request.Request(update, ended, {'Content-Type': 'application/json'})).read()\n"
)


def cancelling(dagster: dg.DagsterInstance, matches: Callable[[Request], bool]) -> Callable[[Request], bool]:
    """Cancel as soon as such a request comes, and hold it up, so that the cancel finds us waiting for its answer.

    As Dagster does: it notes that the run is being cancelled, and sends its worker SIGINT.
    """
    sent: list[Request] = []

    def applies(request: Request) -> bool:
        if sent or not matches(request):
            return False
        sent.append(request)
        (run,) = dagster.get_runs()
        dagster.report_run_canceling(run)
        os.kill(os.getpid(), signal.SIGINT)
        return True

    return applies


@pytest.mark.parametrize(
    ("step", "mlflow_status"),
    [
        ("resolve", []),
        ("provision", ["KILLED"]),
        ("train", ["KILLED"]),
        ("terminate", ["FINISHED"]),
        ("record", ["FINISHED"]),
    ],
)
def test_a_run_that_is_cancelled_in_this_step_ends_as_canceled_and_leaves_no_instance(
    step: str,
    mlflow_status: list[str],
    world: World,
    dagster: dg.DagsterInstance,
    recorded: Build,
    monkeypatch: pytest.MonkeyPatch,
    aws_proxy: FaultyProxy,
    mlflow_proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    trained = tmp_path / "trained"
    asks = "urllib.request.urlopen(os.environ['MLFLOW_TRACKING_URI'] + '/train').read()\n"
    ends = f"open('{trained}', 'w').close()\n"
    said = {"train": asks, "record": SAYS_FINISHED}.get(step, "")  # what says nothing to MLflow, we close
    program = world.script(f"cancelled-in-{step}", f"#!/usr/bin/env python\n{IMPORTS}{said}{ends}")

    def at_aws(request: Request) -> bool:
        looks = b"Action=DescribeInstances" in request.body and b"InstanceId.1=" in request.body
        return looks and {"provision": True, "terminate": trained.exists()}.get(step, False)

    def at_mlflow(request: Request) -> bool:
        asked = {"resolve": "/experiments/get", "train": "/train", "record": "/runs/get"}.get(step)
        return asked is not None and asked in request.path

    with aws_proxy.held(cancelling(dagster, at_aws)), mlflow_proxy.held(cancelling(dagster, at_mlflow)):
        train(world, dagster, monkeypatch, settings=program)
    (run,) = dagster.get_runs()
    steps = {one.step_key.rpartition(".")[2] for one in dagster.get_run_step_stats(run.run_id)}
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert max(steps, key=names.Step.ALL.index) == step
    assert world.ec2.find(pipeline="churn", partition="40") is None
    tags = {"dagster_run_id": run.run_id}
    left = [one.status for one in world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags=tags)]
    assert left == mlflow_status


def test_a_cancel_that_the_code_server_could_not_tell_the_worker_is_noticed_all_the_same(
    world: World,
    dagster: dg.DagsterInstance,
    recorded: Build,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_proxy: FaultyProxy,
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)

    def cancelled_while_training(request: Request) -> bool:
        if request.path == "/train":
            (run,) = dagster.get_runs()
            dagster.report_run_canceling(run)  # and no signal
        return False

    asks = "import os, urllib.request\nurllib.request.urlopen(os.environ['MLFLOW_TRACKING_URI'] + '/train')"
    program = world.script("not-told", f'#!/bin/sh\npython3 -c "{asks}"\n{SLEEPS}')
    with mlflow_proxy.held(cancelled_while_training):
        train(world, dagster, monkeypatch, settings=program)
    (run,) = dagster.get_runs()
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert world.ec2.find(pipeline="churn", partition="40") is None


@pytest.mark.parametrize(
    ("seen", "ending", "interrupts"),
    [
        (["STARTED", "STARTED"], False, 0),
        (["STARTED", "CANCELING"], False, 0),
        (["CANCELING", "CANCELING", "CANCELED"], False, 1),
        (["CANCELED"], False, 1),
        (["CANCELING", "CANCELING", "CANCELED"], True, 0),
        (["FAILURE", "FAILURE"], False, 0),
    ],
)
def test_a_worker_interrupts_itself_once_and_never_while_it_cleans_up(
    seen: list[str], ending: bool, interrupts: int
) -> None:
    statuses = iter([dg.DagsterRunStatus(one) for one in seen])
    done: list[str] = []
    cancellation = Cancellation(
        status=lambda: next(statuses), ending=lambda: ending, interrupt=lambda: done.append("interrupt")
    )
    for _ in seen:
        cancellation.look()
    assert len(done) == interrupts


def test_a_cancel_does_not_wait_long_for_an_mlflow_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "Mlflow", lambda settings, **_: Mlflow(settings))
    monkeypatch.setattr(retry, "MLFLOW_CLOSING", retry.MLFLOW_CLOSING.with_total(0.5))
    program = world.script("begins", f"#!/bin/sh\necho begun\n{SLEEPS}")
    with FaultyProxy(world.mlflow_server.url) as mlflow:

        def cancel(_: str) -> None:
            mlflow.standing = HUNG_UP
            mlflow.seen.clear()
            raise KeyboardInterrupt

        settings = {**program, "MLFLOW_TRACKING_URI": mlflow.url}
        attempt = world.attempt(201, run=ThisRun("run-201"), settings=settings, write=cancel)
        instance = provisioned(attempt)
        with pytest.raises(KeyboardInterrupt):
            attempt.train()
        attempt.close()
        assert gone(world, instance.id)
        assert len(mlflow.seen) <= 4, "it is not tried for as long as a call that matters"


@pytest.mark.parametrize(("ending", "expected"), [("cancelled", "cancelled"), ("failed", "status 4")])
def test_an_aws_that_is_away_does_not_hide_why_the_training_ended(
    ending: str, expected: str, world: World, aws_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(retry.EC2, total_seconds=0.2, first_pause_seconds=0.05)
    monkeypatch.setattr(attempts, "Ec2", functools.partial(Ec2, policy=policy))
    how = "exit 4\n" if ending == "failed" else SLEEPS
    program = world.script(ending, f"#!/bin/sh\necho begun\n{how}")
    began: list[str] = []
    with ExitStack() as outage:

        def away(text: str) -> None:
            if not began:
                outage.enter_context(aws_proxy.faulty(REFUSED))
            began.append(text)
            if ending == "cancelled":
                raise KeyboardInterrupt("cancelled")

        attempt = world.attempt(202, run=ThisRun("run-202"), settings=program, write=away)
        instance = provisioned(attempt)
        with pytest.raises((KeyboardInterrupt, TrainingFailed), match=expected):
            attempt.train()
        attempt.close()
        assert world.mlflow.run(instance.mlflow_run).status == ("KILLED" if ending == "cancelled" else "FAILED")
    world.ec2.terminate(instance.id)


def test_a_training_that_exited_0_is_not_closed_as_killed_when_the_run_is_cancelled_afterwards(world: World) -> None:
    attempt = world.attempt(203, run=ThisRun("run-203"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    trained = attempt.train()
    assert world.mlflow.run(trained).status == "RUNNING", "this program says nothing to MLflow"
    attempt.close()
    assert world.ec2.find(pipeline="tiny", partition="203") is None
    assert world.mlflow.run(trained).status == "FINISHED"
    later = world.attempt(203, run=ThisRun("run-203b", "run-203", trained_before=trained))
    assert later.provision() is None
    assert later.finished().run.id == trained
    later.close()
