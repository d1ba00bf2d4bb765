"""Allow-lists and trusted proxies, read strictly."""

from __future__ import annotations

import pytest

from orchestrator.settings.people import AllowList, TrustedProxy, issuer_fault

LIST = AllowList.parse(
    [
        "*=viewer",
        "*@example.com=launcher",
        "Alice@Example.com=admin",
        "bob=admin",
        "sub:AbC=admin",
        "carol@example.com=viewer",
    ]
)
SMALL = AllowList.parse(["*@example.com=launcher", "kim@example.com=admin", "sub:AbC=admin", "bob=viewer"])


@pytest.mark.parametrize(
    ("identities", "role"),
    [
        (["alice@example.com"], "admin"),
        (["ALICE@EXAMPLE.COM"], "admin"),
        (["dave@example.com"], "launcher"),
        (["carol@example.com"], "viewer"),
        (["bob"], "admin"),
        (["sub:AbC"], "admin"),
        (["sub:abc"], "viewer"),
        (["dave@evil.example", "bob"], "admin"),
        (["anybody"], "viewer"),
        ([], None),
        ([""], None),
    ],
)
def test_a_name_comes_before_a_domain_and_that_before_everybody(identities: list[str], role: str | None) -> None:
    assert LIST.role_of(identities) == role


@pytest.mark.parametrize(
    "identity",
    [
        "x@evil.com@example.com",
        "@example.com",
        "x@sub.example.com",
        "x@example.com.evil.com",
        "x@example.comx",
        "example.com",
        "*",
        "sub:x@example.com",
        "sub:abc",
        "AbC",
        "\u212aim@example.co\u200bm",
        "bob ",
    ],
)
def test_nobody_is_taken_for_somebody_else(identity: str) -> None:
    assert SMALL.role_of([identity]) is None


@pytest.mark.parametrize("name", ["SUB:17", "Sub:17", "sUb:17"])
def test_a_name_does_not_fold_into_somebody_s_id(name: str) -> None:
    """Many providers let people choose their names, and none lets them choose their ID."""
    assert AllowList.parse(["sub:17=admin", "*=viewer"]).role_of([name, "sub:99"]) == "viewer"


def test_letters_that_fold_into_others_are_others() -> None:
    assert SMALL.role_of(["\u212aim@example.com"]) != "admin"  # the sign of Kelvin is a k in lower case


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("alice", "has no role"),
        ("Sub:17=admin", "write sub: in lower case"),
        ("=admin", "has no role"),
        ("alice=", "is no role"),
        ("alice=root", "is no role"),
        ("a*=viewer", "where none may be"),
        ("*@*.com=viewer", "where none may be"),
        ("*@=viewer", "where none may be"),
        ("*.example.com=admin", "where none may be"),
    ],
)
def test_a_word_that_could_mean_something_else_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AllowList.parse([word])


@pytest.mark.parametrize(
    ("text", "header", "networks"),
    [
        ("X-Forwarded-User 10.0.0.0/8, fd00::/8", "x-forwarded-user", ("10.0.0.0/8", "fd00::/8")),
        ("X-User: 10.0.0.5", "x-user", ("10.0.0.5",)),
        ("Remote-User=127.0.0.1/32", "remote-user", ("127.0.0.1/32",)),
        ("Remote-User@10.0.0.0/8", "remote-user", ("10.0.0.0/8",)),
        ("10.0.0.0/8", None, ("10.0.0.0/8",)),
        ("fd00::/8,10.1.1.1", None, ("fd00::/8", "10.1.1.1")),
    ],
)
def test_a_proxy_is_a_header_and_its_networks(text: str, header: str | None, networks: tuple[str, ...]) -> None:
    assert TrustedProxy.parse(text) == TrustedProxy(header, networks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "X-User",
        "X-User 0.0.0.0/0",
        "X-User ::/0",
        "X-User 10.0.0.1/8",
        "X-User proxy.lan",
        "Cookie 10.0.0.1",
        "Host 10.0.0.1",
    ],
)
def test_a_proxy_that_is_anybody_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has a sentence of its own
        TrustedProxy.parse(text)


def test_only_the_proxy_s_addresses_are_held() -> None:
    proxy = TrustedProxy.parse("X-User 10.0.0.0/24,fd00::1")
    assert all(proxy.holds(address) for address in ("10.0.0.9", "::ffff:10.0.0.9", "fd00::1"))
    assert not any(proxy.holds(address) for address in ("10.0.1.9", "fd00::2", "", "somebody", "::1"))


@pytest.mark.parametrize(
    "issuer", ["https://a.example", "https://a.example:8443/realms/x", "http://127.0.0.1:8080", "http://[::1]:1"]
)
def test_an_issuer_is_reached_by_https_or_is_this_machine(issuer: str) -> None:
    assert issuer_fault(issuer) is None


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "a.example",
        "http://a.example",
        "http://localhost.evil.example",
        "https://u@a.example",
        "https://a?x",
        "ftp://a",
    ],
)
def test_another_issuer_is_refused(issuer: str) -> None:
    assert issuer_fault(issuer)
