"""The fault campaign itself: its plan can be repeated, its faults are counted, and its trainings tell what they do."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator_sandbox.chaos.plan import AWAY, OUTAGES, PHASES, TRIES, WHERE, Agenda, Fault, Kind, plan
from orchestrator_sandbox.chaos.proxy import Answer, Proxy, Weather
from orchestrator_sandbox.chaos.training import STEP_SECONDS, STEPS, Ledger, Training, read
from orchestrator_sandbox.chaos.watch import Clock
from orchestrator_sandbox.web import HandlerServer
from orchestrator_tests.support.waiting import until


def first(count: int, *, seed: int = 7) -> list[Fault]:
    return list(itertools.islice(plan(seed), count))


def test_a_seed_gives_the_same_plan_again() -> None:
    assert first(100) == first(100)
    assert first(20, seed=8) != first(20)
    assert [fault.index for fault in first(20)] == list(range(20))


def described(fault: Fault) -> str:
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
    places = [(kind, phase) for kind, phases in WHERE.items() for phase in phases]
    assert set(WHERE) == set(Kind)
    assert {phase for _, phase in places} == set(PHASES)
    once = [(fault.kind, fault.phase) for fault in first(len(places))]
    assert sorted(once) == sorted(places)


def test_the_first_outage_of_each_server_in_each_phase_takes_the_minute_that_must_be_borne() -> None:
    outages = [fault for fault in first(150) if fault.kind in AWAY]
    places = {(AWAY[fault.kind], fault.phase): fault for fault in reversed(outages)}
    assert {fault.seconds for fault in places.values()} == {OUTAGES[-1]}
    assert {fault.seconds for fault in outages} == set(OUTAGES)


def test_a_fault_that_missed_is_tried_again_just_the_same_before_any_other() -> None:
    agenda = Agenda(plan(7), hits=3)
    missed, second, third = (agenda.next() for _ in range(3))
    assert missed is not None
    assert second is not None
    assert agenda.next() is None, "three are under way, and may be enough"
    agenda.done(missed, hit=False)
    agenda.done(second, hit=True)
    assert agenda.next() == missed
    assert agenda.next() is None
    assert [missed, second, third] == first(3)


def test_a_fault_that_never_hits_makes_room_for_the_next_one() -> None:
    agenda = Agenda(plan(7), hits=1)
    for _ in range(TRIES):
        fault = agenda.next()
        assert fault == first(1)[0]
        agenda.done(fault, hit=False)
    following = agenda.next()
    assert following == first(2)[1]
    agenda.done(following, hit=True)
    assert (agenda.hits, agenda.next()) == (1, None)


def test_of_a_plan_of_one_fault_nothing_else_is_done() -> None:
    (fault,) = first(1)
    agenda = Agenda(iter([fault]), hits=1)
    for _ in range(TRIES):
        assert agenda.next() == fault
        agenda.done(fault, hit=False)
    assert (agenda.hits, agenda.next()) == (0, None)


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


NO = Answer(503, b"<no/>", "text/xml")


def ask(proxy: Proxy, path: str = "/a?b=c") -> requests.Response:
    return requests.get(f"{proxy.url}{path}", timeout=10)


def test_the_proxy_forwards_while_the_weather_is_good(proxy: Proxy) -> None:
    assert ask(proxy).json()["path"] == "/a?b=c"


def test_the_proxy_refuses_connections_as_long_as_it_is_told_to(proxy: Proxy) -> None:
    with proxy.weather(Weather.REFUSING) as refusing, proxy.weather(Weather.HTML) as html:
        for _ in range(2):
            with pytest.raises(requests.ConnectionError):
                ask(proxy)
        assert (bool(refusing.met), html.met) == (True, 0)
    assert ask(proxy).ok


def test_two_outages_at_once_each_know_that_they_were_met(proxy: Proxy) -> None:
    with proxy.weather(Weather.REFUSING) as first_one:
        with pytest.raises(requests.ConnectionError):
            ask(proxy)
        with proxy.weather(Weather.REFUSING) as second_one:
            assert (first_one.met, second_one.met) == (1, 0)
            with pytest.raises(requests.ConnectionError):
                ask(proxy)
            assert second_one.met == 1
        with pytest.raises(requests.ConnectionError):
            ask(proxy)
    assert ask(proxy).ok


def test_the_proxy_talks_html_as_long_as_it_is_told_to(proxy: Proxy) -> None:
    with proxy.weather(Weather.HTML) as toll:
        assert toll.met == 0
        assert ask(proxy).text.startswith("<html>")
        assert toll.met == 1
    assert ask(proxy).json()


def test_the_proxy_spoils_only_the_requests_that_are_meant(proxy: Proxy) -> None:
    with proxy.spoilt(NO, times=2, applies=lambda request: request.path == "/bad") as toll:
        assert [ask(proxy, path).status_code for path in ("/bad", "/good", "/bad", "/bad")] == [503, 200, 503, 200]
        assert toll.met == 2


def test_what_was_not_spoilt_while_it_was_time_is_not_spoilt_later(proxy: Proxy) -> None:
    with proxy.spoilt(NO, times=2) as mine:
        with proxy.spoilt(NO, times=5):
            pass
        assert [ask(proxy).status_code for _ in range(3)] == [503, 503, 200]
        assert mine.met == 2
    with proxy.spoilt(NO, times=5):
        pass
    assert ask(proxy).ok


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


def test_a_training_that_waits_for_mlflow_is_heard_of_all_the_same(proxy: Proxy, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    environment = {"MLFLOW_TRACKING_URI": proxy.url, "HOME": "/ec2/i-1/home/ubuntu"}
    with proxy.weather(Weather.HTML) as toll:
        waiting = subprocess.Popen([ledger.program, "run", "it", "--run-id", "m1"], env=environment)
        try:
            until(lambda: toll.met > 0)
            since = time.time()
            until(lambda: ledger.trainings()[0].seen > since + STEP_SECONDS)
            (training,) = ledger.trainings()
            assert (training.steps, training.status) == ((), None)
        finally:
            waiting.kill()
            waiting.wait()
