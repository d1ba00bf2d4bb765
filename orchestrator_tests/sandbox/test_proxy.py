"""The proxies: which request meets which fault, and how a network fails."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests

from orchestrator_sandbox.proxy import (
    ANSWER_LOST,
    HTML_PAGE,
    HUNG_UP,
    OUTAGE_SECONDS,
    REFUSED,
    STALLED,
    FaultyProxy,
    ProxyFault,
    TcpRelay,
)
from orchestrator_tests.support.echo_server import echo_server
from orchestrator_tests.support.waiting import until

NO = ProxyFault(status=503, body="<no/>", content_type="text/xml")


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with echo_server() as url, FaultyProxy(url) as proxy:
        yield proxy


def ask(proxy: FaultyProxy, path: str = "/a?b=c") -> requests.Response:
    return requests.get(f"{proxy.url}{path}", timeout=10)


def test_a_proxy_forwards_while_no_fault_is_on(proxy: FaultyProxy) -> None:
    assert ask(proxy).json()["path"] == "/a?b=c"


def test_a_proxy_refuses_connections_as_long_as_the_fault_is_on(proxy: FaultyProxy) -> None:
    with proxy.faulty(REFUSED) as refusing, proxy.faulty(HTML_PAGE) as html:
        for _ in range(2):
            with pytest.raises(requests.ConnectionError):
                ask(proxy)
        assert (bool(refusing.count), html.count) == (True, 0)
    assert ask(proxy).ok


def test_two_outages_at_once_each_know_that_they_were_met(proxy: FaultyProxy) -> None:
    with proxy.faulty(REFUSED) as first:
        with pytest.raises(requests.ConnectionError):
            ask(proxy)
        with proxy.faulty(REFUSED) as second:
            assert (first.count, second.count) == (1, 0)
            with pytest.raises(requests.ConnectionError):
                ask(proxy)
            assert second.count == 1
        with pytest.raises(requests.ConnectionError):
            ask(proxy)
    assert ask(proxy).ok


def test_a_proxy_shows_its_own_page_as_long_as_the_fault_is_on(proxy: FaultyProxy) -> None:
    with proxy.faulty(HTML_PAGE) as hits:
        assert hits.count == 0
        assert ask(proxy).text.startswith("<html>")
        assert hits.count == 1
    assert ask(proxy).json()


def test_a_proxy_spoils_only_the_requests_that_are_meant(proxy: FaultyProxy) -> None:
    with proxy.faulty(NO, times=2, applies=lambda request: request.path == "/bad") as hits:
        assert [ask(proxy, path).status_code for path in ("/bad", "/good", "/bad", "/bad")] == [503, 200, 503, 200]
        assert hits.count == 2


def test_what_was_not_spoilt_while_it_was_time_is_not_spoilt_later(proxy: FaultyProxy) -> None:
    with proxy.faulty(NO, times=2) as mine:
        with proxy.faulty(NO, times=5):
            pass
        assert [ask(proxy).status_code for _ in range(3)] == [503, 503, 200]
        assert mine.count == 2
    with proxy.faulty(NO, times=5):
        pass
    assert ask(proxy).ok


def test_a_proxy_holds_a_request_up_until_it_is_let_go(proxy: FaultyProxy) -> None:
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


def test_a_queued_fault_is_for_one_request_and_comes_before_a_standing_one(proxy: FaultyProxy) -> None:
    proxy.faults.append(NO)
    proxy.standing = ProxyFault(status=404)
    assert [ask(proxy).status_code for _ in range(2)] == [503, 404]
    proxy.standing = None
    assert ask(proxy).ok
    assert [request.path for request in proxy.seen] == ["/a?b=c"] * 3
    assert proxy.requests_for("/a") == 3


@pytest.mark.parametrize(("fault", "forwarded"), [(HUNG_UP, 0), (ANSWER_LOST, 1)])
def test_a_request_without_an_answer_was_forwarded_or_not(fault: ProxyFault, forwarded: int) -> None:
    with echo_server() as url, FaultyProxy(url) as upstream, FaultyProxy(upstream.url) as proxy:
        with proxy.faulty(fault, times=1), pytest.raises(requests.ConnectionError):
            ask(proxy)
        assert len(upstream.seen) == forwarded


def test_a_stalled_request_gets_no_answer(proxy: FaultyProxy) -> None:
    with proxy.faulty(STALLED), pytest.raises(requests.Timeout):
        requests.get(proxy.url, timeout=0.2)


def test_outages_that_follow_one_another_are_one_and_single_bad_answers_are_none(proxy: FaultyProxy) -> None:
    with proxy.faulty(NO, times=1):
        assert proxy.bearable_seconds() == OUTAGE_SECONDS
    with proxy.faulty(HTML_PAGE):
        first = proxy.bearable_seconds()
    with proxy.faulty(HTML_PAGE):
        assert proxy.bearable_seconds() < first < OUTAGE_SECONDS


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def connect(relay: TcpRelay, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection through the relay."""
    client = socket.create_connection(("127.0.0.1", relay.port), timeout=10)
    server, _ = listener.accept()
    server.settimeout(10)
    return client, server


def test_a_relay_passes_bytes_and_the_end_on(listener: socket.socket) -> None:
    with TcpRelay(listener.getsockname()[1]) as relay:
        client, server = connect(relay, listener)
        with closing(client), closing(server):
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            server.close()
            assert client.recv(100) == b""


def test_a_silent_relay_passes_nothing_on_and_closes_nothing(listener: socket.socket) -> None:
    with TcpRelay(listener.getsockname()[1]) as relay:
        client, server = connect(relay, listener)
        with closing(client), closing(server):
            relay.silent = True
            client.sendall(b"question")
            server.close()
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(100)


def test_a_silent_relay_accepts_connections_to_a_host_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with TcpRelay(port) as relay:
        relay.silent = True
        with socket.create_connection(("127.0.0.1", relay.port), timeout=0.3) as client, pytest.raises(TimeoutError):
            client.recv(100)


def test_a_cut_resets_the_connections_there_are_and_no_later_one(listener: socket.socket) -> None:
    with TcpRelay(listener.getsockname()[1]) as relay:
        client, server = connect(relay, listener)
        with closing(client), closing(server):
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            relay.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        later, server = connect(relay, listener)
        with closing(later), closing(server):
            later.sendall(b"question")
            assert server.recv(100) == b"question"


def test_a_relay_that_was_away_is_back_on_the_same_port(listener: socket.socket) -> None:
    with TcpRelay(listener.getsockname()[1]) as relay:
        port = relay.port
        relay.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        relay.open()
        assert relay.port == port
        client, server = connect(relay, listener)
        client.close()
        server.close()


def test_a_connection_goes_where_the_relay_leads_when_it_is_made(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, TcpRelay(listener.getsockname()[1]) as relay:
        other.settimeout(10)
        relay.target_port = other.getsockname()[1]
        client, server = connect(relay, other)
        client.close()
        server.close()
