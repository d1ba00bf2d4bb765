"""The address of an instance may change after it was ready, or be one that we do not reach."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from orchestrator.errors import SshUnreachable
from orchestrator.pipeline.training import on_instance
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.ssh import Ssh
from orchestrator_tests.support import attempts
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned

pytestmark = pytest.mark.services

NOBODY = "127.99.99.99"


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "Ssh", functools.partial(Ssh, policy=replace(retry.SSH, total_seconds=0.2)))


def ready_at_nobody(world: World, monkeypatch: pytest.MonkeyPatch, *, public: bool) -> None:
    """Let every instance be ready at an address where nothing answers."""

    def wait(_: Ec2, instance: Instance) -> Instance:
        return replace(ready(world.ec2, instance), address=NOBODY, public=public)

    ready = Ec2.wait_until_ready
    monkeypatch.setattr(Ec2, "wait_until_ready", wait)


def test_the_address_is_looked_up_again_before_each_connection(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orchestrator")
    ready_at_nobody(world, monkeypatch, public=False)
    attempt = world.attempt(401, run=ThisRun("run-401"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    instance = provisioned(attempt)
    attempt.train()
    attempt.terminate()
    assert sum(line.startswith(f"New address of instance {instance.id}: 127.") for line in caplog.messages) == 1


def test_a_private_address_that_nobody_asked_for_is_not_tried_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_instance, "PRIVATE_SECONDS", 0.5)
    monkeypatch.setattr(on_instance, "young_seconds", lambda instance: 0.0)
    ready_at_nobody(world, monkeypatch, public=False)
    alive = Ec2.require_alive
    monkeypatch.setattr(Ec2, "require_alive", lambda self, id: replace(alive(self, id), address=NOBODY))
    attempt = world.attempt(403, run=ThisRun("run-403"))  # READY_MINUTES=15
    with pytest.raises(SshUnreachable, match="has no public address"):
        attempt.train()


@pytest.mark.parametrize(
    ("settings", "public", "named"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"INSTANCE_ADDRESS": "private"}, False, False),
    ],
)
def test_an_instance_that_cannot_be_reached_is_said_to_have_no_public_address(
    world: World, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], public: bool, named: bool
) -> None:
    ready_at_nobody(world, monkeypatch, public=public)
    alive = Ec2.require_alive
    monkeypatch.setattr(Ec2, "require_alive", lambda self, id: replace(alive(self, id), address=NOBODY))
    attempt = world.attempt(402, run=ThisRun("run-402"), settings={**settings, "READY_MINUTES": "0.001"})
    instance = provisioned(attempt)
    with pytest.raises(SshUnreachable, match=rf"no SSH connection to {NOBODY}") as caught:
        attempt.train()
    assert str(caught.value).startswith(f"instance {instance.id} has no public address") is named
    assert gone(world, instance.id)
