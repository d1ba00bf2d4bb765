"""What all HTTP clients share: each test asks Jenkins' client and MLflow's, and both have to mean the same."""

from __future__ import annotations

import email.utils
import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.errors import (
    JenkinsBadAnswer,
    JenkinsError,
    JenkinsRefused,
    JenkinsUnavailable,
    MlflowError,
    MlflowRefused,
    MlflowUnavailable,
    OrchestratorError,
    SettingsError,
)
from orchestrator.resources import http as http_module
from orchestrator.resources import retry
from orchestrator.resources.http import Address, HttpAnswer, HttpFault, Problem, redirect_target, retry_after
from orchestrator.resources.http.problems import require_success
from orchestrator.resources.jenkins import Jenkins
from orchestrator.resources.mlflow import Mlflow
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings, MlflowSettings
from orchestrator_sandbox.proxy import HUNG_UP, STALLED, FaultyProxy, ProxyFault
from orchestrator_tests.support.raw_http import raw_server

ONE_TRY = RetryPolicy(total_seconds=0, connect_seconds=5, answer_seconds=0.3)
THREE_TRIES = RetryPolicy(
    total_seconds=60,
    connect_seconds=5,
    answer_seconds=10,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.02,
    max_attempts=3,
)


@dataclass(frozen=True)
class ClientCase:
    """A client under test.

    Attributes:
        ask: asks the server at an address for something, which is answered as `good` says.
        good: JSON that it can use.
        unavailable: its error for an outage.
        refused: its error for a login that does not suffice.
        bad: its error for a server that is another one.
        setting: the setting with the server's address.
    """

    name: str
    ask: Callable[[str, RetryPolicy], object]
    good: object
    unavailable: type[OrchestratorError]
    refused: type[OrchestratorError]
    bad: type[OrchestratorError]
    setting: str


def ask_jenkins(url: str, policy: RetryPolicy) -> object:
    settings = JenkinsSettings(url=url, user="ci", token=SecretStr("s3cret"), job="team/churn")
    with Jenkins(settings, policy=policy) as jenkins:
        return jenkins.builds("team/churn", start=0, stop=1)


def ask_mlflow(url: str, policy: RetryPolicy) -> object:
    with Mlflow(MlflowSettings(tracking_uri=url, experiment_id="1"), policy=policy) as mlflow:
        return mlflow.experiment("1").name


CLIENTS = [
    ClientCase(
        "Jenkins",
        ask_jenkins,
        {"allBuilds": []},
        JenkinsUnavailable,
        JenkinsRefused,
        JenkinsBadAnswer,
        "JENKINS_URL",
    ),
    ClientCase(
        "MLflow",
        ask_mlflow,
        {"experiment": {"experiment_id": "1", "name": "churn"}},
        MlflowUnavailable,
        MlflowRefused,
        MlflowError,
        "MLFLOW_TRACKING_URI",
    ),
]


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> ClientCase:
    assert isinstance(request.param, ClientCase)
    return request.param


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", *lines, "", ""]).encode()


class TestTime:
    """Servers that trickle: they send a byte or so at a time, and so are never silent for long."""

    @pytest.mark.parametrize(
        ("begin", "then"),
        [
            pytest.param(head("Content-Length: 100000"), b" ", id="a body of known length"),
            pytest.param(head("Transfer-Encoding: chunked"), b"1\r\n \r\n", id="chunks"),
            pytest.param(head("Transfer-Encoding: chunked") + b"ffff\r\n", b" ", id="one chunk"),
            pytest.param(head("Transfer-Encoding: chunked") + b"1;", b"x", id="the size of a chunk"),
            pytest.param(head("Transfer-Encoding: chunked") + b"0\r\n", b"x: y\r\n", id="trailers"),
            pytest.param(head("Connection: close"), b" ", id="a body that ends with the connection"),
            pytest.param(head("Content-Encoding: gzip", "Content-Length: 9999"), b"\x1f", id="a packed body"),
            pytest.param(head("Content-Length: 100000", status="503 Busy"), b" ", id="the body of an error"),
            pytest.param(
                head("Location: /", "Content-Length: 100000", status="302 Found"), b" ", id="the body of a redirect"
            ),
            pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", id="headers"),
            pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"y", id="a header"),
            pytest.param(b"HTTP/1.1 ", b"2", id="a status line"),
            pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="a hundred times 100"),
        ],
    )
    def test_an_answer_that_trickles_is_left_in_time(self, client: ClientCase, begin: bytes, then: bytes) -> None:
        with raw_server(begin, then=then) as server:
            with pytest.raises(client.unavailable):
                client.ask(server.url, ONE_TRY)
            assert server.hung_up.wait(30)
            assert server.requests == 1

    def test_a_slow_answer_that_ends_in_time_is_read(self, client: ClientCase) -> None:
        body = json.dumps(client.good).encode()
        parts = [body[at : at + 1] for at in range(len(body))]
        patient = THREE_TRIES.with_total(0)
        with raw_server(head(f"Content-Length: {len(body)}", "Connection: close"), *parts) as server:
            client.ask(server.url, patient)
            assert server.requests == 1


class TestSize:
    @pytest.mark.parametrize(
        ("begin", "then"),
        [
            pytest.param(head("Content-Length: 999999999"), b" " * 2**20, id="a body of known length"),
            pytest.param(
                head("Transfer-Encoding: chunked"), b"100000\r\n" + b" " * 2**20 + b"\r\n", id="chunks without end"
            ),
            pytest.param(head("Connection: close"), b" " * 2**20, id="a body that ends with the connection"),
            pytest.param(
                head("Transfer-Encoding: chunked") + b"0\r\n", (b"x: " + b"y" * 60_000 + b"\r\n") * 16, id="trailers"
            ),
        ],
    )
    def test_an_answer_without_end_is_left_and_not_asked_for_again(
        self, client: ClientCase, begin: bytes, then: bytes
    ) -> None:
        with raw_server(begin, then=then, slowly=False) as server:
            with pytest.raises(client.bad, match=f"more than 64 MB: .*{client.setting}"):
                client.ask(server.url, THREE_TRIES)
            assert server.hung_up.wait(30)
            assert server.requests == 1

    def test_the_size_of_a_chunk_has_an_end(self, client: ClientCase) -> None:
        begin = head("Transfer-Encoding: chunked") + b"1;"
        with raw_server(begin, then=b"x" * 2**20, slowly=False) as server:
            with pytest.raises((client.unavailable, client.bad)):
                client.ask(server.url, ONE_TRY)
            assert server.hung_up.wait(30)

    @pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found"])
    def test_a_body_that_is_huge_once_unpacked_is_left(self, client: ClientCase, status: str) -> None:
        packed = gzip.compress(b" " * (http_module.LARGEST_ANSWER + 1))
        assert len(packed) < 100_000
        begin = head("Location: /", "Content-Encoding: gzip", f"Content-Length: {len(packed)}", status=status)
        with (
            raw_server(begin, packed, slowly=False) as server,
            pytest.raises(client.bad, match="more than 64 MB"),
        ):
            client.ask(server.url, THREE_TRIES)

    def test_a_packed_answer_is_unpacked(self, client: ClientCase) -> None:
        packed = gzip.compress(json.dumps(client.good).encode())
        begin = head("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
        with raw_server(begin, packed) as server:
            client.ask(server.url, ONE_TRY)


OUTAGES = [
    pytest.param(HUNG_UP, id="hung up"),
    pytest.param(ProxyFault(status=408), id="408"),
    pytest.param(ProxyFault(status=429, body="{}"), id="429"),
    pytest.param(ProxyFault(status=500, body="{}"), id="500"),
    pytest.param(ProxyFault(status=503, body="<html>"), id="503"),
    pytest.param(ProxyFault(body="<!DOCTYPE html><p>Maintenance"), id="a web page"),
    pytest.param(ProxyFault(body="We are back soon.", content_type="text/plain"), id="text"),
    pytest.param(ProxyFault(body='{"allBuilds": [', content_type="application/json"), id="half of the JSON"),
    pytest.param(ProxyFault(body="", content_type="application/json"), id="nothing"),
]


class TestEveryOutage:
    @pytest.mark.parametrize("fault", OUTAGES)
    def test_it_is_ridden_out(self, client: ClientCase, fault: ProxyFault, caplog: pytest.LogCaptureFixture) -> None:
        with FaultyProxy() as server, caplog.at_level(logging.WARNING):
            server.faults.extend([fault, fault])
            server.standing = ProxyFault(body=json.dumps(client.good), content_type="application/json")
            client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 3
        assert [record.message.partition(":")[0] for record in caplog.records] == ["Trying again", "Trying again"]

    @pytest.mark.parametrize("fault", OUTAGES[:6])
    def test_it_is_an_outage_when_our_patience_ends(self, client: ClientCase, fault: ProxyFault) -> None:
        with FaultyProxy() as server:
            server.standing = fault
            with pytest.raises(client.unavailable) as error:
                client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 3
        assert "s3cret" not in str(error.value)

    @pytest.mark.parametrize("status", [408, 429, 503])
    @pytest.mark.parametrize("kind", ["seconds", "a date", "too much", "nonsense"])
    def test_the_server_says_when_to_come_back(self, client: ClientCase, status: int, kind: str) -> None:
        """Without its word the pause is a year, so that one that is not obeyed never ends."""
        header = {
            "seconds": "0",
            "a date": email.utils.format_datetime(email.utils.localtime()),
            "too much": "3600",
            "nonsense": "¹",
        }[kind]
        year = 365 * 24 * 3600.0
        policy = RetryPolicy(
            total_seconds=10 * year,
            connect_seconds=5,
            answer_seconds=10,
            first_pause_seconds=year if kind in ("seconds", "a date") else 0.01,
            longest_pause_seconds=year if kind in ("seconds", "a date") else 0.02,
        )
        with FaultyProxy() as server:
            server.faults.append(ProxyFault(status=status, headers={"Retry-After": header}))
            server.standing = ProxyFault(body=json.dumps(client.good), content_type="application/json")
            client.ask(server.url, policy)
            assert len(server.seen) == 2


class TestEveryRefusal:
    @pytest.mark.parametrize("location", ["/login?from=%2Fci&token=hidden", "https://u:hidden@sso.example.com/oauth/x"])
    def test_a_redirect_to_a_login_page_is_refused(self, client: ClientCase, location: str) -> None:
        with FaultyProxy() as server:
            server.standing = ProxyFault(status=302, headers={"Location": location})
            with pytest.raises(client.refused, match="redirects to") as error:
                client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 1
        assert "hidden" not in str(error.value)

    @pytest.mark.parametrize("location", ["https://127.0.0.1/ci/", "/elsewhere/?secret=hidden", "http://[::1", ""])
    def test_a_redirect_elsewhere_names_the_setting_to_change(self, client: ClientCase, location: str) -> None:
        with FaultyProxy() as server:
            server.standing = ProxyFault(status=301, headers={"Location": location})
            with pytest.raises(client.bad, match=f"set {client.setting} to the ") as error:
                client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 1
        assert "hidden" not in str(error.value)
        assert not isinstance(error.value, client.refused)

    def test_a_page_that_asks_for_a_login_is_refused(self, client: ClientCase) -> None:
        with FaultyProxy() as server:
            server.standing = ProxyFault(body='<html><form><input type="password">')
            with pytest.raises(client.refused, match="login page"):
                client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 1

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_login_that_does_not_suffice_is_refused(self, client: ClientCase, status: int) -> None:
        with FaultyProxy() as server:
            server.standing = ProxyFault(status=status)
            with pytest.raises(client.refused, match=f"^{status} "):
                client.ask(server.url, THREE_TRIES)
            assert len(server.seen) == 1


class TestOtherServers:
    @pytest.mark.parametrize(
        "body", ["[1]", "null", '{"allBuilds": 5, "experiment": 5}', '{"experiment": {}}', "[" * 100_000, "[]" * 9]
    )
    def test_json_of_another_shape_is_another_servers(self, client: ClientCase, body: str) -> None:
        with FaultyProxy() as server:
            server.standing = ProxyFault(body=body, content_type="application/json")
            with pytest.raises((JenkinsError, MlflowError), match=client.setting):
                client.ask(server.url, THREE_TRIES)

    @pytest.mark.parametrize("url", ["http://[::1", "http://host:port", "http://host:99999"])
    def test_what_is_no_address_is_said_to_be_none(self, client: ClientCase, url: str) -> None:
        with pytest.raises(SettingsError, match=f"{client.setting} is not an address"):
            client.ask(url, ONE_TRY)

    @pytest.mark.parametrize("url", ["http://.example.com", f"http://{'a' * 70}.example.com"])
    def test_a_host_that_cannot_be_one_is_a_wrong_setting(self, client: ClientCase, url: str) -> None:
        with pytest.raises(SettingsError, match=client.setting):
            client.ask(url, THREE_TRIES)

    def test_a_server_that_speaks_no_http_is_explained(self, client: ClientCase) -> None:
        with raw_server(b"SSH-2.0-OpenSSH_9.6\r\n") as server, pytest.raises(client.unavailable):
            client.ask(server.url, ONE_TRY)

    def test_a_body_that_is_not_packed_as_it_says_is_explained(self, client: ClientCase) -> None:
        begin = head("Content-Encoding: gzip", "Content-Length: 5")
        with raw_server(begin, b"hello") as server, pytest.raises(client.bad, match=f"no HTTP.*{client.setting}"):
            client.ask(server.url, THREE_TRIES)


class TestParsers:
    @given(st.text())
    def test_any_retry_after_is_a_time_or_nothing(self, header: str) -> None:
        seconds = retry_after(header)
        assert seconds is None or seconds >= 0

    @given(st.integers(min_value=0, max_value=10**400))
    def test_seconds_are_taken_as_they_are(self, seconds: int) -> None:
        assert retry_after(f" {seconds} ") == float(str(seconds))

    @given(st.datetimes())
    def test_a_date_is_so_many_seconds_from_now(self, moment: Any) -> None:
        seconds = retry_after(email.utils.format_datetime(moment))
        assert seconds is not None
        assert seconds >= 0

    @given(st.text() | st.builds("{}://{}:{}@{}".format, st.just("https"), st.text(), st.just("hidden"), st.text()))
    def test_any_location_gives_a_place_that_is_safe_to_print(self, location: str) -> None:
        place = redirect_target("http://jenkins.example.com/job/x", location)
        assert "?" not in place
        assert "#" not in place

    def test_a_place_has_no_login(self) -> None:
        assert redirect_target("http://j/x", "//u:hidden@[::1]:80/a?b#c") == "http://[::1]:80/a"

    @given(st.text())
    def test_any_text_is_an_address_or_a_wrong_setting(self, text: str) -> None:
        for address in (text, f"http://{text}"):
            try:
                uri = Address.parse(address, setting="JENKINS_URL", example="https://jenkins.example.com/").uri
            except SettingsError:
                continue
            assert uri.startswith(("http://", "https://"))
            assert not uri.endswith("/")

    @given(st.binary())
    def test_any_body_is_a_json_object_or_none(self, body: bytes) -> None:
        data = HttpAnswer("http://j/", 200, {}, body).json_object()
        assert data is None or isinstance(data, dict)


class TestRedirect:
    @pytest.mark.parametrize(
        ("place", "problem"),
        [
            ("https://kc.example.com/realms/dev/protocol/openid-connect/auth?x=1", Problem.LOGIN_REDIRECT),
            ("https://adfs.example.com/ls/wia", Problem.LOGIN_REDIRECT),
            ("https://accounts.example.com/o/v2", Problem.LOGIN_REDIRECT),
            ("/securityRealm/commenceLogin?from=%2F", Problem.LOGIN_REDIRECT),
            ("/users/sign-in", Problem.LOGIN_REDIRECT),
            ("https://ci.example.com/job/login-service/api/json", Problem.MOVED),
            ("/jenkins/job/login-service/api/json", Problem.MOVED),
            ("https://jenkins.example.com/job/login-service/api/json", Problem.MOVED),
        ],
    )
    def test_a_login_is_told_from_a_server_that_has_moved(self, place: str, problem: Problem) -> None:
        answer = HttpAnswer("http://ci.example.com/job/login-service/api/json", 302, {"Location": place}, b"")
        with pytest.raises(HttpFault) as fault:
            require_success(answer)
        assert fault.value.problem is problem

    def test_a_jenkins_that_leads_to_another_host_is_not_taken_for_its_new_address(self) -> None:
        with (
            raw_server(
                head("Location: https://portal.example.com/start", "Content-Length: 0", status="302 Found")
            ) as server,
            pytest.raises(JenkinsBadAnswer) as error,
        ):
            ask_jenkins(server.url, ONE_TRY)
        assert "another host, https://portal.example.com/start: if that asks for a login" in str(error.value)


class TestPolicy:
    def test_a_client_with_another_policy_shares_the_session(self) -> None:
        with Mlflow(MlflowSettings(tracking_uri="http://127.0.0.1:1", experiment_id="1")) as mlflow:
            closing = mlflow.with_policy(retry.MLFLOW_CLOSING)
            assert (closing.policy, mlflow.policy) == (retry.MLFLOW_CLOSING, retry.MLFLOW)
            assert closing._http._session is mlflow._http._session

    def test_the_last_try_gets_what_is_left_of_the_time(self, client: ClientCase) -> None:
        """Its answer would take an hour, and the policy of one try allows for that."""
        policy = RetryPolicy(
            total_seconds=0.5,
            connect_seconds=5,
            answer_seconds=3600,
            first_pause_seconds=0.01,
            longest_pause_seconds=0.01,
        )
        with FaultyProxy() as server:
            server.faults.append(HUNG_UP)
            server.standing = STALLED
            with pytest.raises(client.unavailable):
                client.ask(server.url, policy)
            assert len(server.seen) == 2
