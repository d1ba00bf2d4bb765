"""Hosts and origins are read strictly: never twice in different ways, and never as more than they say."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.settings.hosts import HostPort, Origin, is_ip_address, is_loopback

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=5).map(".".join)
PORT = st.integers(1, 65535)
HOSTILE = st.text(alphabet=st.sampled_from("aZ09.:[]@/\\?#%-_ \t\r\n\0\u00e9\u2028*,;'\""), max_size=30)


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost:3000", "localhost", 3000),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:3000", "::1", 3000),
        ("[0:0:0:0:0:0:0:1]", "::1", None),
        ("a_b-c.example:65535", "a_b-c.example", 65535),
        ("3com.example", "3com.example", None),
    ],
)
def test_a_host_is_read(text: str, name: str, port: int | None) -> None:
    assert HostPort.parse(text) == HostPort(name, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":3000",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:3000:3000",
        "localhost:+80",
        "localhost:8\u0660",
        "localhost.",
        ".localhost",
        "local..host",
        "-localhost",
        "localhost-",
        "localhost/",
        "localhost\n",
        "localhost \n",
        " localhost",
        "user@localhost",
        "localhost@evil.example",
        "localhost#@evil.example",
        "localhost,evil.example",
        "localhost%00",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1%lo]",
        "[localhost]",
        "[127.0.0.1]",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.01",
        "127.0.0.1.1",
        "1.2.3.4.5",
        "256.0.0.1",
        "\u217alocalhost",
        "\u24dbocalhost",
        "localho\u017ft",
        "a" * 64,
        "a." * 127 + "aa",
    ],
)
def test_what_can_be_read_in_two_ways_is_read_in_none(text: str) -> None:
    assert HostPort.parse(text) is None


@given(NAME, st.none() | PORT)
def test_a_name_and_its_port_come_back(name: str, port: int | None) -> None:
    assert HostPort.parse(name if port is None else f"{name}:{port}") == HostPort(name, port)


@given(HOSTILE)
def test_whatever_is_read_as_a_host_is_the_whole_host_of_an_address(text: str) -> None:
    host = HostPort.parse(text)
    if host:
        address = urlsplit(f"http://{text}/x")
        assert (address.hostname, address.port) == (host.name if ":" not in host.name else address.hostname, host.port)
        assert (address.path, address.username, address.query) == ("/x", None, "")


@given(st.sampled_from(["http", "https"]), NAME, st.none() | PORT)
def test_an_origin_has_its_default_port(scheme: str, name: str, port: int | None) -> None:
    origin = Origin.parse(f"{scheme}://{name}" if port is None else f"{scheme}://{name}:{port}")
    assert origin == Origin(scheme, name, port or {"http": 80, "https": 443}[scheme])


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "",
        "localhost",
        "//localhost",
        "http:localhost",
        "http:///localhost",
        "http://localhost/",
        "http://localhost?",
        "http://user@localhost",
        "http://localhost\n",
        "http://localhost http://localhost",
        "ftp://localhost",
        "file://",
        "ws://localhost",
        "chrome-extension://abcdef",
        "javascript://localhost",
    ],
)
def test_what_is_no_origin_is_nobody_s(text: str) -> None:
    assert Origin.parse(text) is None


@given(HOSTILE, HOSTILE)
def test_what_is_hung_on_to_an_origin_does_not_make_it_ours(before: str, after: str) -> None:
    ours = Origin.parse("http://localhost:3000")
    read = Origin.parse(f"{before}http://localhost:3000{after}")
    assert (read == ours) == (before == "" and after == "") or read is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("127.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_told_by_the_address_not_by_how_it_begins(name: str, expected: bool) -> None:
    assert is_loopback(name) is expected


def test_a_number_is_told_from_a_name() -> None:
    assert [is_ip_address(name) for name in ("10.0.0.1", "::1", "ten.example", "1.2.3")] == [True, True, False, False]
