"""The fault campaign itself: its plan can be repeated, and each promise that it checks can be seen to be broken."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console

from orchestrator.sandbox.chaos_checks import Ended, Facts, Record, violations
from orchestrator.sandbox.chaos_plan import PHASES, WHERE, Fault, Kind, plan
from orchestrator.sandbox.chaos_proxy import Answer, Proxy, Weather
from orchestrator.sandbox.chaos_report import Result, show, summary
from orchestrator.sandbox.chaos_training import STEPS, Ledger, Training, read
from orchestrator.sandbox.chaos_watch import Clock
from orchestrator.sandbox.web import HandlerServer
from orchestrator_tests.waiting import until

TRAINED = Training(run="m1", instance="i-1", pid=7, began=100.0, seen=105.0, steps=tuple(range(STEPS)), status=0)
GREEN = Facts(
    partition="12",
    attempts=(Ended("d1", "SUCCESS"),),
    mlflow_runs=(("m1", "FINISHED"),),
    records=(Record("d1", "m1"),),
    trainings=(TRAINED,),
)
RED = Facts(
    partition="12",
    attempts=(Ended("d1", "FAILURE", why="the training exited with status 1"),),
    mlflow_runs=(("m1", "FAILED"),),
    trainings=(replace(TRAINED, status=1),),
)
CANCELLED = Facts(partition="12", attempts=(Ended("d1", "CANCELED"),), mlflow_runs=(("m1", "KILLED"),))
ADOPTED = replace(GREEN, attempts=(Ended("d0", "FAILURE", why="its worker died"), Ended("d1", "SUCCESS")))
STARTED_AFRESH = replace(
    GREEN,
    mlflow_runs=(("m0", "KILLED"), ("m1", "FINISHED")),
    trainings=(Training("m0", "i-0", 6, began=90.0, seen=95.0, steps=(0, 1), status=None), TRAINED),
)
RECORDED_TWICE = replace(ADOPTED, records=(Record("d0", "m1"), Record("d1", "m1")))
RED_AFTER_TRAINING = replace(
    GREEN, attempts=(Ended("d1", "FAILURE", why="MLflow is away, run m1 is not recorded"),), records=()
)


@pytest.mark.parametrize(
    "facts", [GREEN, RED, CANCELLED, ADOPTED, STARTED_AFRESH, RECORDED_TWICE, RED_AFTER_TRAINING], ids=range(7)
)
def test_a_build_that_ended_as_promised_breaks_nothing(facts: Facts) -> None:
    assert violations(facts) == []


BROKEN = {
    "is alive without a live attempt": replace(RED, live_instances=("i-1",)),
    "a process is left": replace(GREEN, left_processes=("41 of i-1: python",)),
    "MLflow run m1 is RUNNING": replace(CANCELLED, mlflow_runs=(("m1", "RUNNING"),)),
    "had no live attempt for 200 s": replace(GREEN, orphaned_seconds=200.0),
    "it was never trained": Facts(partition="12", attempts=()),
    "is still STARTED": replace(RED, attempts=(Ended("d1", "STARTED"),)),
    "does not say why": replace(RED, attempts=(Ended("d1", "FAILURE", why=" "),)),
    "2 of its runs are green": replace(GREEN, attempts=(Ended("d0", "SUCCESS"), Ended("d1", "SUCCESS"))),
    "green with 0 FINISHED": replace(GREEN, mlflow_runs=(("m1", "FAILED"),), records=()),
    "green with 2 FINISHED": replace(GREEN, mlflow_runs=(("m0", "FINISHED"), ("m1", "FINISHED"))),
    "['m9'] is recorded": replace(GREEN, records=(Record("d1", "m9"),)),
    "d1 is green and recorded nothing": replace(GREEN, records=(Record("d0", "m1"),)),
    "run d1 recorded 2 times": replace(GREEN, records=(Record("d1", "m1"), Record("d1", "m1"))),
    "no process of it exited 0": replace(GREEN, trainings=(replace(TRAINED, status=1),)),
    "is not green, and 2 MLflow runs": replace(
        CANCELLED, mlflow_runs=(("m0", "FINISHED"), ("m1", "FINISHED")), trainings=(TRAINED, replace(TRAINED, run="m0"))
    ),
    "only the latter knows": replace(RED_AFTER_TRAINING, attempts=(Ended("d1", "FAILURE", why="it failed"),)),
    "two trainings at once": replace(
        STARTED_AFRESH, trainings=(replace(STARTED_AFRESH.trainings[0], seen=101.0), TRAINED)
    ),
    "was trained 2 times": replace(
        GREEN, trainings=(replace(TRAINED, instance="i-0", began=90.0, seen=95.0, steps=(0,), status=None), TRAINED)
    ),
}


@pytest.mark.parametrize("told", BROKEN)
def test_each_broken_promise_is_told(told: str) -> None:
    assert [fault for fault in violations(BROKEN[told]) if told in fault], violations(BROKEN[told])


def first(count: int, *, seed: int = 7) -> list[Fault]:
    return list(itertools.islice(plan(seed), count))


def test_a_seed_gives_the_same_plan_again() -> None:
    assert first(100) == first(100)
    assert first(20, seed=8) != first(20)
    assert [fault.index for fault in first(20)] == list(range(20))


def test_every_kind_comes_in_every_phase_where_it_means_something_before_any_comes_twice() -> None:
    places = [(kind, phase) for kind, phases in WHERE.items() for phase in phases]
    assert set(WHERE) == set(Kind)
    assert {phase for _, phase in places} == set(PHASES)
    once = [(fault.kind, fault.phase) for fault in first(len(places))]
    assert sorted(once) == sorted(places)


def test_an_orphan_is_timed_until_it_is_gone_and_the_longest_time_is_kept() -> None:
    clock = Clock()
    clock.see([("i-1", "12")], 100.0)
    clock.see([("i-1", "12"), ("i-2", "13")], 130.0)
    clock.see([("i-2", "13")], 140.0)
    clock.see([("i-1", "12")], 150.0)
    clock.see([], 400.0)
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


class Echo(BaseHTTPRequestHandler):
    """Enough of an MLflow for a training, and says what it was asked."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        tags = [{"key": "orchestrator.partition", "value": "12"}]
        body = json.dumps({"path": self.path, "run": {"data": {"tags": tags}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = HandlerServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with Proxy() as proxy:
        proxy.upstream = f"http://127.0.0.1:{server.server_port}"
        yield proxy
    server.shutdown()
    thread.join()
    server.server_close()


def ask(proxy: Proxy, path: str = "/a?b=c") -> requests.Response:
    return requests.get(f"{proxy.url}{path}", timeout=10)


def test_the_proxy_forwards_while_the_weather_is_good(proxy: Proxy) -> None:
    assert ask(proxy).json()["path"] == "/a?b=c"


def test_the_proxy_refuses_connections_as_long_as_it_is_told_to(proxy: Proxy) -> None:
    with proxy.weather(Weather.REFUSING), proxy.weather(Weather.HTML), pytest.raises(requests.ConnectionError):
        ask(proxy)
    assert ask(proxy).ok


def test_the_proxy_talks_html_as_long_as_it_is_told_to(proxy: Proxy) -> None:
    with proxy.weather(Weather.HTML):
        assert ask(proxy).text.startswith("<html>")
    assert ask(proxy).json()


def test_the_proxy_spoils_only_the_requests_that_are_meant(proxy: Proxy) -> None:
    proxy.spoil(Answer(503, b"<no/>", "text/xml"), times=2, applies=lambda request: request.path == "/bad")
    assert [ask(proxy, path).status_code for path in ("/bad", "/good", "/bad", "/bad")] == [503, 200, 503, 200]


def test_the_proxy_holds_a_request_up_until_it_is_let_go(proxy: Proxy) -> None:
    held, answers = threading.Event(), []

    def applies(request: object) -> bool:
        held.set()
        return True

    with proxy.held(applies):
        asking = threading.Thread(target=lambda: answers.append(ask(proxy)))
        asking.start()
        until(held.is_set)
        assert answers == []
    asking.join()
    assert answers[0].ok


@pytest.mark.parametrize(("failing", "status", "steps"), [(False, 0, STEPS), (True, 1, 2)])
def test_a_training_tells_the_ledger_how_it_went(
    proxy: Proxy, tmp_path: Path, failing: bool, status: int, steps: int
) -> None:
    ledger = Ledger(tmp_path)
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


def test_the_report_names_what_broke_and_how_to_do_it_again() -> None:
    fault = Fault(index=3, kind=Kind.SSH_CUT, phase="train", after=1.0, seconds=3.0, times=1)
    result = Result(
        fault=fault,
        partition="12",
        missed=None,
        outcome="SUCCESS",
        why=None,
        attempts=1,
        trainings=2,
        settled_seconds=20.0,
        orphaned_seconds=0.0,
        unattended_seconds=0.0,
        violations=("build 12: two trainings at once",),
    )
    console = Console(record=True, width=200, file=io.StringIO())
    show(console, [result], seed=7, minutes=2.0)
    text = console.export_text()
    assert "--replay 7/3" in text
    assert "two trainings at once" in text
    told = json.loads(summary([result], seed=7, minutes=2.0))
    assert told["violations"] == ["build 12: two trainings at once"]
    assert (told["faults"], told["green"], told["seed"]) == (1, 1, 7)
