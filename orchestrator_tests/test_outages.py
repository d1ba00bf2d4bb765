"""AWS and MLflow may be away, overloaded or mad for a minute in any step: the build is trained all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import parse_qs

import pytest

from orchestrator.pipeline import builds, lease, on_instance
from orchestrator.remote import training as training_module
from orchestrator.resources import ec2_calls
from orchestrator.resources import mlflow as mlflow_module
from orchestrator.resources.mlflow import Mlflow
from orchestrator.sandbox.chaos_proxy import PAGE, Answer, Proxy, Request, Weather
from orchestrator.settings_groups import MachineSettings, MlflowSettings
from orchestrator_tests import attempts
from orchestrator_tests.attempts import ThisRun, World
from orchestrator_tests.test_attempt import gone, provisioned

pytestmark = pytest.mark.services

A_MINUTE = 60.0

THROTTLED = (
    b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>Too fast</Message></Error></Errors>"
    b"<RequestID>r</RequestID></Response>"
)
MADNESS = {
    "a proxy's page": Answer(200, PAGE, "text/html"),
    "a bad gateway": Answer(502, PAGE, "text/html"),
    "throttled": Answer(503, THROTTLED, "text/xml"),
}


@pytest.fixture
def mlflow_proxy(world: World, mlflow_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """On our way to MLflow, not on the instance's; and we are as patient with it as at our users'."""
    monkeypatch.setitem(world.environment, "MLFLOW_TRACKING_URI_ON_INSTANCE", world.mlflow_server.url)
    monkeypatch.setattr(attempts, "Mlflow", lambda settings, **_: Mlflow(settings))
    return mlflow_proxy


def first_of_each_kind() -> Callable[[Request], bool]:
    """Fits the first request for each action of EC2, and for each endpoint of MLflow."""
    seen: set[str] = set()

    def applies(request: Request) -> bool:
        action = parse_qs(request.body.decode(errors="replace")).get("Action", [""])[0]
        kind = action or request.path.partition("?")[0]
        if kind in seen:
            return False
        seen.add(kind)
        return True

    return applies


def test_whoever_is_asked_is_waited_for_longer_than_a_minute() -> None:
    assert ec2_calls.USUAL_PACE.outage > A_MINUTE
    assert mlflow_module.PATIENCE_SECONDS > A_MINUTE
    assert MlflowSettings.model_fields["patience_minutes"].default * 60 > A_MINUTE
    assert builds.PATIENCE_SECONDS > A_MINUTE
    assert MachineSettings.model_fields["ready_minutes"].default * 60 > A_MINUTE
    assert training_module.REFUSED_SECONDS > A_MINUTE


def test_an_outage_of_a_minute_does_not_make_a_live_attempt_look_dead() -> None:
    one_try = ec2_calls.HASTY_CONNECT_SECONDS + ec2_calls.HASTY_ANSWER_SECONDS
    last_before, first_after = 0.0, A_MINUTE + lease.RENEW_SECONDS + one_try
    assert first_after - last_before < lease.LEASE.total_seconds()


@pytest.mark.parametrize("kind", MADNESS)
def test_a_build_is_trained_though_every_call_fails_at_first(
    kind: str, world: World, aws_proxy: Proxy, mlflow_proxy: Proxy
) -> None:
    number = 401 + list(MADNESS).index(kind)
    applies = first_of_each_kind()
    aws_proxy.spoil(MADNESS[kind], times=20, applies=applies)
    mlflow_proxy.spoil(MADNESS[kind], times=20, applies=applies)
    attempt = world.attempt(number, run=ThisRun(f"run-{number}"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    attempt.check()
    instance = provisioned(attempt)
    assert attempt.train() == instance.mlflow_run
    attempt.terminate()
    finished = attempt.finished()
    assert finished.run.status == "FINISHED"
    assert finished.run.id == instance.mlflow_run
    assert gone(world, instance.id)
    tags = {"dagster_run_id": f"run-{number}"}
    runs = list(world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags=tags))
    assert len(runs) == 1
    attempt.close()


def test_nobody_listening_at_the_beginning_of_any_step_only_delays_it(
    world: World, aws_proxy: Proxy, mlflow_proxy: Proxy
) -> None:
    attempt = world.attempt(411, run=ThisRun("run-411"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    for step in (attempt.check, attempt.provision, attempt.train, attempt.terminate, attempt.finished):
        outage = ExitStack()
        for proxy in (aws_proxy, mlflow_proxy):
            outage.enter_context(proxy.weather(Weather.REFUSING))
        end = threading.Timer(0.7, outage.close)
        end.start()
        step()
        end.join()
    assert attempt.finished().run.status == "FINISHED"
    assert world.ec2.find(pipeline="tiny", partition="411") is None
    attempt.close()


def test_a_loss_of_the_instance_while_mlflow_is_away_ends_in_another_training(
    world: World, mlflow_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = world.attempt(421, run=ThisRun("run-421"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    first = provisioned(attempt)
    monkeypatch.setattr(on_instance, "CONNECT_SECONDS", 0.5)
    world.ec2_server.terminate_from_outside(first.id)
    with ExitStack() as outage:
        outage.enter_context(mlflow_proxy.weather(Weather.HTML))
        threading.Timer(1, outage.close).start()
        trained = attempt.train()
    assert trained != first.mlflow_run
    attempt.terminate()
    assert attempt.finished().run.id == trained
    attempt.close()
