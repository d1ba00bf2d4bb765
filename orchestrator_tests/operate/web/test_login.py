"""Cookies, tokens in the address, wrong attempts; without a server."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.operate.web.attempts import Attempts
from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.login import COOKIE_SECONDS, Login, local_address, without_token
from orchestrator.operate.web.sessions import Sessions
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.users import Users

TOKEN = "0123456789abcdef" * 2
DOOR = Door(host="127.0.0.1", port=3000, token=TOKEN)
NOW = 1_800_000_000.0


class Clock:
    """Shows what it is set to, and is moved on by whoever sleeps."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def login(tmp_path: Path, *, door: Door = DOOR, clock: Clock | None = None) -> Login:
    now = clock or Clock()
    sessions = Sessions(tmp_path, now=now)
    return Login(door, MachineTokens(tmp_path), Users(tmp_path / "users.json"), sessions, now=now)


def request(host: str = "127.0.0.1:3000", *, scheme: str = "http", **headers: str | list[str]) -> Incoming:
    lists = {name: value if isinstance(value, list) else [value] for name, value in headers.items()}
    return Incoming(scheme=scheme, headers={"host": [host], **lists})


def cookie_of(login: Login, incoming: Incoming) -> str:
    return login.set_cookie(incoming).partition(";")[0]


def test_a_cookie_lets_its_browser_in_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    ours = login(tmp_path, clock=clock)
    cookie = cookie_of(ours, request())
    assert ours.caller_of_cookie(request(cookie=cookie)) == Caller("ui", Role.ADMIN)
    clock.now += COOKIE_SECONDS - 1
    assert ours.caller_of_cookie(request(cookie=cookie))
    clock.now += 1
    assert ours.caller_of_cookie(request(cookie=cookie)) is None


def test_the_cookie_is_not_the_token_and_does_not_hold_it(tmp_path: Path) -> None:
    assert TOKEN not in login(tmp_path).set_cookie(request())


def test_a_cookie_outlives_a_restart_with_the_same_token_only(tmp_path: Path) -> None:
    cookie = cookie_of(login(tmp_path), request())
    assert login(tmp_path).caller_of_cookie(request(cookie=cookie))
    other = login(tmp_path, door=dataclasses.replace(DOOR, token=TOKEN[::-1]))
    assert other.caller_of_cookie(request(cookie=cookie)) is None


def test_no_part_of_a_cookie_can_be_changed(tmp_path: Path) -> None:
    ours = login(tmp_path)
    name, _, value = cookie_of(ours, request()).partition("=")
    until, nonce, mac = value.split(".")
    changed = [
        f"{int(until) + 1}.{nonce}.{mac}",
        f"{until}.{nonce}x.{mac}",
        f"{until}.{nonce}.{mac[:-1]}",
        f"{until}.{nonce}.",
        f"{until}..{mac}",
        f"+{value}",
        f" {until}.{nonce}.{mac}x",
        f"0{value}",
        mac,
        TOKEN,
        "",
        "9" * 400,
        "\u0661.x.y",
    ]
    for forged in changed:
        assert ours.caller_of_cookie(request(cookie=f"{name}={forged}")) is None


@given(st.text(alphabet='0123456789.abcdef-_ ;="\u00e9', max_size=80))
def test_no_text_is_a_cookie_of_ours(text: str) -> None:
    ours = login(Path("/nonexistent"))
    assert ours.caller_of_cookie(request(cookie=f"orchestrator-3000={text}")) is None


def test_a_cookie_that_another_port_has_set_does_not_lock_us_out(tmp_path: Path) -> None:
    ours = login(tmp_path)
    good = cookie_of(ours, request())
    for line in (f"orchestrator-3000=foreign; {good}", f"{good}; orchestrator-3000=foreign; x", f"a=b;{good}"):
        assert ours.caller_of_cookie(request(cookie=line))
    assert ours.caller_of_cookie(request(cookie=["orchestrator-3000=foreign", good]))


def test_the_cookie_is_named_by_the_port_that_the_browser_knows(tmp_path: Path) -> None:
    ours = login(tmp_path)
    assert ours.cookie_name(request("localhost:8080")) == "orchestrator-8080"
    assert ours.cookie_name(request("localhost")) == "orchestrator-80"
    assert ours.cookie_name(request("localhost:3000", scheme="https")) == "__Host-orchestrator-3000"
    assert ours.cookie_name(request("localhost", scheme="https")) == "__Host-orchestrator-443"
    cookie = cookie_of(ours, request("localhost:8080"))
    assert ours.caller_of_cookie(request("localhost:8081", cookie=cookie)) is None


def test_the_cookie_s_attributes_keep_scripts_and_other_sites_away(tmp_path: Path) -> None:
    plain = login(tmp_path).set_cookie(request())
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(plain.split("; "))
    assert "Secure" not in plain
    assert "Domain" not in plain
    secure = login(tmp_path).set_cookie(request(scheme="https"))
    assert secure.startswith("__Host-")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Secure"} <= set(secure.split("; "))


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (f"Bearer {TOKEN}", TOKEN),
        (f"bearer  {TOKEN} ", TOKEN),
        ("Bearer", ""),
        ("Bearer ", ""),
        (f"Basic {TOKEN}", None),
        (TOKEN, None),
        (f"BearerX {TOKEN}", None),
    ],
)
def test_a_bearer_token_is_found_in_its_header(tmp_path: Path, value: str, token: str | None) -> None:
    assert login(tmp_path).bearer(request(authorization=value)) == token


def test_a_token_in_the_header_is_the_ui_s_or_a_machine_s(tmp_path: Path) -> None:
    ours = login(tmp_path)
    machine = MachineTokens(tmp_path).add("ci", Role.LAUNCHER)
    assert ours.caller_of_token(TOKEN) == Caller("ui", Role.ADMIN, by_header=True)
    assert ours.caller_of_token(machine) == Caller("ci", Role.LAUNCHER, by_header=True)
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), machine[:-1], "\u00e9", "\udcff"):
        assert ours.caller_of_token(wrong) is None


def test_an_open_door_still_knows_machines_and_knows_no_empty_token(tmp_path: Path) -> None:
    ours = login(tmp_path, door=Door(host="127.0.0.1", port=3000, asks_for_token=False))
    assert ours.caller_of_cookie(request()) == Caller("ui", Role.ADMIN)
    assert ours.caller_of_token("") is None
    assert not ours.opens("")


@pytest.mark.parametrize(
    ("path", "query", "address"),
    [
        ("/", "token=x", "/"),
        ("/runs/1", "token=x&a=1&token=y", "/runs/1?a=1"),
        ("/runs/1", "a=1%26b&token=x", "/runs/1?a=1%26b"),
        ("//evil.example/x", "token=x", "/evil.example/x"),
        ("/\\evil.example", "token=x", "/evil.example"),
        ("/a b?c#d", "token=x", "/a%20b%3Fc%23d"),
    ],
)
def test_the_token_leaves_the_address(path: str, query: str, address: str) -> None:
    assert without_token(Incoming(path=path, query=query, headers={})) == address


@given(st.text(alphabet=st.characters(), max_size=30), st.text(alphabet=st.characters(), max_size=5))
def test_after_the_login_no_address_leads_to_another_host(path: str, value: str) -> None:
    address = local_address(path, [(value, value)] if value else [])
    assert address.isascii()
    assert address.isprintable()
    assert not address.startswith("//")
    assert "\\" not in address
    assert urlsplit(urljoin("http://localhost:3000/login", address)).netloc == "localhost:3000"


def test_each_wrong_token_is_answered_later_than_the_one_before() -> None:
    clock = Clock()
    attempts = Attempts(now=clock, sleep=clock.sleep)
    for _ in range(8):
        assert asyncio.run(attempts.failed())
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[0] < 1
    assert clock.slept[-1] == Attempts.LONGEST_SECONDS
    clock.now += Attempts.FORGOTTEN_AFTER_SECONDS + 1
    asyncio.run(attempts.failed())
    assert clock.slept[-1] == clock.slept[0]


def test_only_so_many_wrong_ones_wait_at_once() -> None:
    async def storm() -> list[bool]:
        held = asyncio.Event()

        async def sleep(_seconds: float) -> None:
            await held.wait()

        attempts = Attempts(sleep=sleep)
        waiting = [asyncio.create_task(attempts.failed()) for _ in range(Attempts.MOST_WAITING)]
        await asyncio.sleep(0)
        refused = await attempts.failed()
        held.set()
        return [*await asyncio.gather(*waiting), refused]

    *waited, refused = asyncio.run(storm())
    assert all(waited)
    assert not refused
