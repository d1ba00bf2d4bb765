"""RETRY_OOM_ON_LARGER: a training that the kernel killed for lack of memory gets a larger machine, once."""

from __future__ import annotations

import logging

import pytest

from orchestrator.errors import TrainingFailed
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned

pytestmark = pytest.mark.services

KILLED = 'ln -s "exited 1 $(date +%s) oom_kills=1 memory_kb=4194304" "$ORCHESTRATOR_TRAINING/exit"; exit 1\n'
"""As the supervisor tells an end for lack of memory: a test cannot have the kernel kill anything."""

ON = {"RETRY_OOM_ON_LARGER": "true"}


@pytest.mark.parametrize(
    ("number", "types", "larger"),
    [
        (901, "t3.medium,t3.large", "t3.large"),
        (902, "t3.medium,t3.small,c5.large,m5.large", "m5.large"),  # c5.large has as much
    ],
)
def test_the_next_type_with_more_memory_is_tried(
    world: World, caplog: pytest.LogCaptureFixture, number: int, types: str, larger: str
) -> None:
    caplog.set_level(logging.WARNING)
    small = world.directory / f"small-{number}"
    program = f"#!/bin/sh\n[ -e {small} ] && exit 0\ntouch {small}\n{KILLED}"
    settings = {**ON, **world.script(f"large-{number}", program), "INSTANCE_TYPE": types}
    attempt = world.attempt(number, run=ThisRun(f"run-{number}"), settings=settings)
    first = provisioned(attempt)
    trained = attempt.train()
    usage = attempt.terminate()
    assert usage is not None
    assert (first.type, usage.instance_type) == ("t3.medium", larger)
    assert gone(world, first.id)
    assert trained != first.mlflow_run
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    assert "lack of memory" in world.mlflow.run(first.mlflow_run).tags["orchestrator.reason"]
    assert f"Beginning anew on {larger}, with more memory than t3.medium (RETRY_OOM_ON_LARGER)" in caplog.text
    attempt.close()


@pytest.mark.parametrize(
    ("number", "settings", "tries"),
    [
        (903, {**ON, "INSTANCE_TYPE": "t3.medium,t3.large,t3.xlarge"}, 2),  # once
        (904, {"INSTANCE_TYPE": "t3.medium,t3.large"}, 1),  # off
        (905, {**ON, "INSTANCE_TYPE": "t3.medium,t3.small"}, 1),
        (906, {**ON, "INSTANCE_TYPE": "t3.medium"}, 1),
    ],
)
def test_it_is_red_when_no_larger_one_is_left_to_try(
    world: World, number: int, settings: dict[str, str], tries: int
) -> None:
    before = set(world.ec2_server.instance_ids())
    settings = {**settings, **world.script(f"killed-{number}", f"#!/bin/sh\n{KILLED}")}
    attempt = world.attempt(number, run=ThisRun(f"run-{number}"), settings=settings)
    with pytest.raises(TrainingFailed, match=r"for lack of memory .*: choose a larger INSTANCE_TYPE"):
        attempt.train()
    launched = set(world.ec2_server.instance_ids()) - before
    assert len(launched) == tries
    assert all(gone(world, instance) for instance in launched)


def test_where_aws_does_not_tell_of_types_their_order_decides(world: World) -> None:
    world.ec2_server.faults.answer("DescribeInstanceTypes", AwsFault("UnauthorizedOperation", status=403), times=4)
    types = ["t3.medium", "m5.large", "t3.small"]
    assert world.ec2.with_more_memory("m5.large", types) == ["t3.small"]
    assert world.ec2.with_more_memory("t3.small", types) == []
    assert world.ec2.with_more_memory("x1.large", types) == []
    assert world.ec2.with_more_memory("t3.medium", ["t3.medium"]) == []
    world.ec2_server.faults.clear()
    assert world.ec2.with_more_memory("t3.small", types) == ["t3.medium", "m5.large"]
