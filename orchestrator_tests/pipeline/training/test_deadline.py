"""A training that fights its deadline is ended all the same, by keepers out of its reach; its run is red for good."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import Ec2Error, InstanceLost, TrainingError, TrainingTimedOut
from orchestrator.pipeline.training import deadline
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.deadline import Deadline
from orchestrator_sandbox.proxy import HTML_PAGE, FaultyProxy
from orchestrator_tests.support import attempts
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.silent_relay import SilentRelay
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

MINUTES = 0.05
SENTENCE = r"the training ran past its deadline of 0\.05 min, and its instance was terminated.*MAX_TRAINING_MINUTES"

BELOW = 'below() { for one in $(ps -o pid= --ppid "$1"); do [ "$one" = $$ ] || { echo "$one"; below "$one"; }; done; }'
AT_SUPERVISOR = f"""#!/bin/sh
cd "$ORCHESTRATOR_TRAINING"
owner=$(readlink pid)
supervisor=${{owner%% *}}
{BELOW}
"""
GO_ON = "while :; do echo mining; sleep 0.2; done\n"

ATTACKS = {
    "stops supervisor and watcher": AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON,
    "kills supervisor and watcher, and is the supervisor": AT_SUPERVISOR
    + 'kill -KILL $(below "$supervisor") "$supervisor"\n'
    + "read -r boot </proc/sys/kernel/random/boot_id; read -r stat <$$/stat || read -r stat </proc/$$/stat\n"
    + 'set -- ${stat##*) }; rm pid; ln -s "$$ $boot ${20}" pid\n'
    + GO_ON,
    "says nothing, and stops the reader, too": AT_SUPERVISOR
    + 'kill -STOP $(below "$supervisor") "$supervisor"\n'
    # Those that work in this training's own directory, and no other's: tests run side by side.
    + 'while :; do for one in /proc/[0-9]*; do [ "$one/cwd" -ef . ] && [ "${one#/proc/}" != $$ ] && '
    + 'kill -STOP "${one#/proc/}"; done 2>/dev/null; sleep 0.2; done\n',
    "floods": AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\nyes mining\n',
    "sets its clock back": "#!/bin/sh\ndate() { echo 0; }\n" + AT_SUPERVISOR + 'kill -STOP "$supervisor"\n' + GO_ON,
}


def short(world: World, number: int, script: str, run: ThisRun, **more: object) -> Attempt:
    """An attempt whose training gets three seconds, and as long as the test says after that."""
    return world.attempt(
        number,
        run=run,
        settings=world.script(f"attack-{number}", script),
        config=TrainingConfig(max_minutes=MINUTES),
        grace=timedelta(seconds=2),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("number", "attack"), list(enumerate(ATTACKS, start=700)), ids=list(ATTACKS))
def test_a_training_that_fights_its_supervisor_is_ended_with_its_instance(
    world: World, number: int, attack: str
) -> None:
    attempt = short(world, number, ATTACKS[attack], ThisRun(f"run-{number}"))
    instance = provisioned(attempt)
    with pytest.raises(TrainingTimedOut, match=SENTENCE):
        attempt.train()
    assert gone(world, instance.id)
    run = world.mlflow.run(instance.mlflow_run)
    assert run.status == "FAILED"
    assert "ran past its deadline of 0.05 min" in run.tags["orchestrator.reason"]
    attempt.close()


@pytest.mark.parametrize("exit_link", ["exited banana", "exited 0", "deadline 1 99999999999999999999", "stopped"])
def test_an_exit_that_no_supervisor_writes_is_no_success(world: World, exit_link: str) -> None:
    number = 710 + len(exit_link)
    attack = AT_SUPERVISOR + f'kill -STOP $(below "$supervisor") "$supervisor"; ln -s "{exit_link}" exit\n' + GO_ON
    attempt = short(world, number, attack, ThisRun(f"run-{number}"))
    instance = provisioned(attempt)
    with pytest.raises(TrainingError):
        attempt.train()
    assert gone(world, instance.id)
    attempt.close()


def test_a_training_behind_a_connection_that_hangs_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str | None] = []
    with SilentRelay() as relay:
        monkeypatch.setattr(attempts, "Ssh", relay.ssh)
        attempt = short(
            world,
            740,
            AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON,
            ThisRun("run-740"),
            write=lambda _: relay.fall_silent(addresses[0]),
        )
        instance = provisioned(attempt)
        addresses.append(instance.address)
        with pytest.raises(TrainingTimedOut, match=SENTENCE):
            attempt.train()
        assert gone(world, instance.id)
        attempt.close()


def test_a_training_whose_output_nobody_takes_is_ended(world: World) -> None:
    taken = threading.Event()
    attempt = short(
        world,
        741,
        AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON,
        ThisRun("run-741"),
        write=lambda _: taken.wait(),
    )
    instance = provisioned(attempt)
    with ThreadPoolExecutor() as threads:
        trained = threads.submit(attempt.train)
        until(lambda: gone(world, instance.id))
        taken.set()
        with pytest.raises(TrainingTimedOut, match=SENTENCE):
            trained.result(60)
    attempt.close()


def test_an_aws_that_is_away_at_the_deadline_is_asked_again(
    world: World, aws_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "_AGAIN_SECONDS", 0.1)
    attempt = short(
        world,
        742,
        AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON,
        ThisRun("run-742"),
    )
    instance = provisioned(attempt)
    away = aws_proxy.faulty(HTML_PAGE, times=3, applies=lambda asked: b"Action=TerminateInstances" in asked.body)
    with away as hits, pytest.raises(TrainingTimedOut, match=SENTENCE):
        attempt.train()
    assert gone(world, instance.id)
    assert hits.count
    attempt.close()


# ---- Ended by another keeper: it is late, not lost


def test_an_instance_that_goes_after_its_deadline_was_late_and_is_not_replaced(world: World) -> None:
    launched: list[str] = []
    passed = datetime.now(UTC) + timedelta(minutes=MINUTES)

    def end_it(_: str) -> None:
        if datetime.now(UTC) > passed + timedelta(seconds=3):
            world.ec2_server.terminate_from_outside(launched[0])

    attack = AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON
    attempt = world.attempt(
        743,
        run=ThisRun("run-743"),
        settings=world.script("attack-743", attack),
        config=TrainingConfig(max_minutes=MINUTES),
        write=end_it,
    )
    launched.append(provisioned(attempt).id)
    with pytest.raises(TrainingTimedOut, match=SENTENCE):
        attempt.train()
    assert list_of(world, 743) == launched
    attempt.close()


def test_what_the_janitor_has_ended_as_late_is_not_begun_anew_whatever_our_clock_says(world: World) -> None:
    run = ThisRun("run-744")

    def end_it(_: str) -> None:
        run.late = True
        world.ec2_server.terminate_from_outside(instance.id)

    attempt = world.attempt(744, run=run, settings=world.script("a-744", "#!/bin/sh\n" + GO_ON), write=end_it)
    instance = provisioned(attempt)
    with pytest.raises(TrainingTimedOut, match="ran past its deadline of 720 min"):
        attempt.train()
    assert list_of(world, 744) == [instance.id]
    attempt.close()


def test_a_retry_that_comes_too_late_for_what_it_was_to_take_over_launches_nothing(world: World) -> None:
    attempt = world.attempt(745, run=ThisRun("run-745b", "run-745a", late=True))
    with pytest.raises(TrainingTimedOut, match="ran past its deadline"):
        attempt.provision()
    assert list_of(world, 745) == []
    attempt.close()


def test_an_adopted_training_keeps_its_deadline_though_its_tag_was_moved(world: World) -> None:
    attack = AT_SUPERVISOR + 'kill -STOP $(below "$supervisor") "$supervisor"\n' + GO_ON
    dead = short(world, 746, attack, ThisRun("run-746a"))
    left = provisioned(dead)
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.ec2.tag(left.id, {"orchestrator:expires-at": later})
    retry = short(world, 746, attack, ThisRun("run-746b", "run-746a"))
    adopted = provisioned(retry)
    assert (adopted.id, adopted.power_off_at) == (left.id, left.power_off_at)
    with pytest.raises(TrainingTimedOut, match=SENTENCE):
        retry.train()
    assert gone(world, left.id)
    retry.close()


def list_of(world: World, number: int) -> list[str]:
    """All instances that were ever launched for this build."""
    tags = {"orchestrator:pipeline": "tiny", "orchestrator:partition": str(number)}
    states = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
    return [instance.id for instance in world.ec2._api.list_once(tags, states=states)]


# ---- The clock


def test_the_wall_clock_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 1000.0
    monkeypatch.setattr(deadline, "_now", lambda: seconds)
    kept = Deadline.of(datetime.now(UTC) + timedelta(minutes=5), minutes=5, grace=timedelta(seconds=30))
    assert kept.seconds_until_end == pytest.approx(330, abs=1)
    assert not kept.passed
    seconds += 301
    assert kept.passed
    assert not kept.over
    seconds += 30
    assert kept.over


def test_what_cannot_be_ended_at_once_is_tried_again_until_it_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadline, "_AGAIN_SECONDS", 0.01)
    ended = threading.Event()
    tries: list[Exception] = [Ec2Error("AWS is away"), InstanceLost("who knows"), RuntimeError("a driver's")]

    def end() -> None:
        if tries:
            raise tries.pop(0)
        ended.set()

    released: list[bool] = []
    kept = Deadline.of(datetime.now(UTC), minutes=1, grace=timedelta(0))
    with caplog.at_level(logging.ERROR), kept.kept(end, let_go=lambda: released.append(True)):
        assert ended.wait(10)
    assert len(released) == 4
    assert "Could not end what ran past its deadline of 1 min, trying again in 0.01 s: AWS is away" in caplog.text
