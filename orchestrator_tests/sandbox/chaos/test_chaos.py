"""The fault campaign itself: its plan can be repeated, its hits are counted, its trainings write down what they do."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_sandbox.chaos.observer import OrphanClock
from orchestrator_sandbox.chaos.plan import (
    MAX_TRIES,
    OUTAGE_SECONDS_CHOICES,
    PHASES,
    PHASES_OF,
    SERVER_AWAY,
    FaultKind,
    FaultQueue,
    PlannedFault,
    plan,
)
from orchestrator_sandbox.chaos.training import STEP_SECONDS, STEPS, Training, TrainingLedger, read
from orchestrator_sandbox.proxy import HTML_PAGE, FaultyProxy
from orchestrator_tests.support.echo_server import echo_server
from orchestrator_tests.support.waiting import until


def first(count: int, *, seed: int = 7) -> list[PlannedFault]:
    return list(itertools.islice(plan(seed), count))


def test_a_seed_gives_the_same_plan_again() -> None:
    assert first(100) == first(100)
    assert first(20, seed=8) != first(20)
    assert [fault.index for fault in first(20)] == list(range(20))


def described(fault: PlannedFault) -> str:
    return f"{fault} after {fault.after:g} s, {fault.times} calls, {fault.seconds:g} s"


def test_a_seed_of_an_earlier_version_still_plans_the_same_campaign() -> None:
    """Reports and bug reports name faults as SEED/INDEX."""
    lines = [described(fault) for fault in first(200, seed=189093)]
    assert lines[:8] == [
        "#0 daemon killed in idle after 0.2 s, 4 calls, 3 s",
        "#1 sshd away in train for 60 s after 1.76 s, 1 calls, 60 s",
        "#2 cancelled in the UI in provision after 0.11 s, 1 calls, 60 s",
        "#3 run worker killed in train after 3.76 s, 2 calls, 3 s",
        "#4 AWS has no capacity in resolve after 0.01 s, 6 calls, 60 s",
        "#5 instance terminated in train after 1.51 s, 3 calls, 20 s",
        "#6 Jenkins talks HTML in idle for 60 s after 0.02 s, 1 calls, 60 s",
        "#7 MLflow talks HTML in terminate for 60 s after 0.13 s, 3 calls, 60 s",
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "e8374d6317cef5296d0648976895c3e020ca5ddb40bc0ccd8d90cdd4fd895439"


def test_every_kind_comes_in_every_phase_where_it_means_something_before_any_comes_twice() -> None:
    places = [(kind, phase) for kind, phases in PHASES_OF.items() for phase in phases]
    assert set(PHASES_OF) == set(FaultKind)
    assert {phase for _, phase in places} == set(PHASES)
    once = [(fault.kind, fault.phase) for fault in first(len(places))]
    assert sorted(once) == sorted(places)


def test_the_first_outage_of_each_server_in_each_phase_takes_the_minute_that_must_be_borne() -> None:
    outages = [fault for fault in first(150) if fault.kind in SERVER_AWAY]
    places = {(SERVER_AWAY[fault.kind], fault.phase): fault for fault in reversed(outages)}
    assert {fault.seconds for fault in places.values()} == {OUTAGE_SECONDS_CHOICES[-1]}
    assert {fault.seconds for fault in outages} == set(OUTAGE_SECONDS_CHOICES)


def test_a_fault_that_missed_is_tried_again_just_the_same_before_any_other() -> None:
    queue = FaultQueue(plan(7), hits=3)
    missed, second, third = (queue.next() for _ in range(3))
    assert missed is not None
    assert second is not None
    assert queue.next() is None, "three are under way, and may be enough"
    queue.done(missed, hit=False)
    queue.done(second, hit=True)
    assert queue.next() == missed
    assert queue.next() is None
    assert [missed, second, third] == first(3)


def test_a_fault_that_never_hits_makes_room_for_the_next_one() -> None:
    queue = FaultQueue(plan(7), hits=1)
    for _ in range(MAX_TRIES):
        fault = queue.next()
        assert fault == first(1)[0]
        queue.done(fault, hit=False)
    following = queue.next()
    assert following == first(2)[1]
    queue.done(following, hit=True)
    assert (queue.hits, queue.next()) == (1, None)


def test_of_a_plan_of_one_fault_nothing_else_is_done() -> None:
    (fault,) = first(1)
    queue = FaultQueue(iter([fault]), hits=1)
    for _ in range(MAX_TRIES):
        assert queue.next() == fault
        queue.done(fault, hit=False)
    assert (queue.hits, queue.next()) == (0, None)


def test_an_orphan_is_timed_until_it_is_gone_and_the_longest_time_is_kept() -> None:
    clock = OrphanClock()
    clock.update([("i-1", "12")], 100.0)
    clock.update([("i-1", "12"), ("i-2", "13")], 130.0)
    clock.update([("i-2", "13")], 140.0)
    clock.update([("i-1", "12")], 150.0)
    clock.update([], 400.0)
    assert (clock.longest("12"), clock.longest("13"), clock.longest("14")) == (30.0, 10.0, 0.0)


def test_the_ledger_tells_processes_apart_and_knows_which_never_came_to_an_end() -> None:
    common = {"run": "m1", "home": "/sandbox/ec2/i-1/home/ubuntu"}
    lines = [
        {"event": "begin", "at": 1.0, "pid": 7, **common},
        {"event": "begin", "at": 2.0, "pid": 8, **common},
        {"event": "step", "at": 3.0, "pid": 7, "step": 0, **common},
        {"event": "end", "at": 4.0, "pid": 8, "status": 1, **common},
    ]
    assert read(map(json.dumps, lines)) == [
        Training("m1", "i-1", 7, began=1.0, seen=3.0, steps=(0,), status=None),
        Training("m1", "i-1", 8, began=2.0, seen=4.0, steps=(), status=1),
    ]


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with echo_server() as url, FaultyProxy(url) as proxy:
        yield proxy


@pytest.mark.parametrize(("failing", "status", "steps"), [(False, 0, STEPS), (True, 1, 2)])
def test_a_training_tells_the_ledger_how_it_went(
    proxy: FaultyProxy, tmp_path: Path, failing: bool, status: int, steps: int
) -> None:
    ledger = TrainingLedger(tmp_path)
    if failing:
        ledger.let_fail("12")
    done = subprocess.run(
        [ledger.program, "run", "git://there/it.git", "--run-id", "m1"],
        env={"MLFLOW_TRACKING_URI": proxy.url, "HOME": "/ec2/i-1/home/ubuntu"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    (training,) = ledger.trainings()
    assert done.returncode == training.status == status, done.stderr
    assert training.steps == tuple(range(steps))
    assert (training.run, training.instance) == ("m1", "i-1")


def test_a_training_that_waits_for_mlflow_is_heard_of_all_the_same(proxy: FaultyProxy, tmp_path: Path) -> None:
    ledger = TrainingLedger(tmp_path)
    environment = {"MLFLOW_TRACKING_URI": proxy.url, "HOME": "/ec2/i-1/home/ubuntu"}
    with proxy.faulty(HTML_PAGE) as hits:
        waiting = subprocess.Popen([ledger.program, "run", "it", "--run-id", "m1"], env=environment)
        try:
            until(lambda: hits.count > 0)
            since = time.time()
            until(lambda: ledger.trainings()[0].seen > since + STEP_SECONDS)
            (training,) = ledger.trainings()
            assert (training.steps, training.status) == ((), None)
        finally:
            waiting.kill()
            waiting.wait()
