"""Sessions end with the log-out, after 12 hours without use, and with whatever is changed of their user."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Caller, LoginWay, Role
from orchestrator.operate.web.door import Door, OidcProvider
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.login import Login
from orchestrator.operate.web.sessions import MOST_SESSIONS_EACH, RENEWED_AFTER_SECONDS, SESSION_SECONDS, Sessions
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.users import User, Users
from orchestrator.settings.people import AllowList
from orchestrator_tests.operate.web.test_login import Clock
from orchestrator_tests.operate.web.test_users import PASSWORD, users_in

ALLOWED = AllowList.parse(["alice@example.com=admin", "*@example.com=viewer"])
PROVIDER = OidcProvider(issuer="https://id.example.com", client_id="us", client_secret="x", allowed=ALLOWED)
DOOR = Door(host="127.0.0.1", port=3000, oidc=PROVIDER)


class House:
    """One installation with one user, in one browser."""

    def __init__(self, home: Path, *, door: Door = DOOR) -> None:
        self.clock = Clock()
        self.home = home
        self.door = door
        self.users = users_in(home)
        self.users.add("ada", Role.LAUNCHER, PASSWORD)

    @property
    def login(self) -> Login:
        """As after a restart."""
        sessions = Sessions(self.home, now=self.clock)
        return Login(self.door, MachineTokens(self.home), self.users, sessions, now=self.clock)

    def user(self) -> User:
        user = self.users.find("ada")
        assert user
        return user

    def log_in(self) -> str:
        return self.login.begin_session_of(Incoming(headers={"host": ["localhost"]}), self.user()).partition(";")[0]

    def caller(self, cookie: str) -> Caller | None:
        return self.login.caller_of_cookie(request(cookie))


def request(cookie: str = "") -> Incoming:
    return Incoming(headers={"host": ["localhost"], "cookie": [cookie]})


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_session_is_its_user_s_and_outlives_a_restart(house: House) -> None:
    caller = house.caller(house.log_in())
    assert caller == Caller("ada", Role.LAUNCHER)
    assert caller
    assert caller.way is LoginWay.PASSWORD


def test_the_cookie_s_attributes_keep_scripts_and_other_sites_away(house: House) -> None:
    for scheme, more in (("http", set()), ("https", {"Secure"})):
        header = house.login.begin_session_of(Incoming(scheme=scheme, headers={"host": ["localhost"]}), house.user())
        attributes = {"HttpOnly", "SameSite=Lax", "Path=/", f"Max-Age={SESSION_SECONDS}", *more}
        assert set(header.split("; ")[1:]) == attributes
        assert header.startswith("__Host-") is (scheme == "https")


def test_a_session_ends_after_twelve_hours_without_use_and_is_renewed_by_use(house: House) -> None:
    cookie = house.log_in()
    for _ in range(5):
        house.clock.now += SESSION_SECONDS - 1
        renewed = house.login.renewed_cookie(request(cookie))
        assert renewed
        assert renewed.startswith(f"{cookie}; ")
        assert house.caller(cookie)
    assert house.login.renewed_cookie(request(cookie)) is None  # it is not written by each request
    house.clock.now += RENEWED_AFTER_SECONDS
    assert house.login.renewed_cookie(request(cookie))
    house.clock.now += SESSION_SECONDS
    assert house.caller(cookie) is None
    assert house.login.renewed_cookie(request(cookie)) is None


@pytest.mark.parametrize("change", ["remove", "role", "password", "remove and add"])
def test_a_session_ends_with_what_is_changed_of_its_user(house: House, change: str) -> None:
    cookie = house.log_in()
    if change.startswith("remove"):
        house.users.remove("ada")
    if change == "remove and add":
        house.users.add("ada", Role.LAUNCHER, PASSWORD)
    if change == "role":
        house.users.change("ada", role=Role.ADMIN)
    if change == "password":
        house.users.change("ada", password="another password")
    assert house.caller(cookie) is None
    assert house.login.renewed_cookie(request(cookie)) is None


def test_a_log_out_ends_the_session_and_no_other(house: House) -> None:
    mine, other = house.log_in(), house.log_in()
    header = house.login.end_session(request(mine))
    assert "Max-Age=0" in header
    assert house.caller(mine) is None
    assert house.caller(other)


@pytest.mark.parametrize("forged", ["", "x", "a.b.c", "\u0661.x.y", "../x", "ada", "null"])
def test_no_text_is_a_session(house: House, forged: str) -> None:
    name = house.log_in().partition("=")[0]
    assert house.caller(f"{name}={forged}") is None


def test_what_is_kept_of_a_session_is_no_cookie(house: House) -> None:
    name, _, session_id = house.log_in().partition("=")
    text = (house.home / "sessions.json").read_text()
    assert session_id not in text
    assert stat.S_IMODE((house.home / "sessions.json").stat().st_mode) == 0o600
    assert house.caller(f"{name}={text.split('sha256')[1][4:68]}") is None


def test_there_are_only_so_many_sessions_of_one_person(house: House) -> None:
    cookies = []
    for _ in range(MOST_SESSIONS_EACH + 1):
        house.clock.now += 1
        cookies.append(house.log_in())
    assert house.caller(cookies[0]) is None
    assert all(house.caller(cookie) for cookie in cookies[1:])


def test_a_file_of_sessions_that_cannot_be_read_opens_nothing(house: House) -> None:
    cookie = house.log_in()
    (house.home / "sessions.json").write_text("{")
    assert house.caller(cookie) is None
    with pytest.raises(SettingsError, match="delete it, and everybody logs in anew"):
        house.log_in()


# ---- OIDC


def by_oidc(house: House, *identities: str) -> str | None:
    header = house.login.begin_session_by_oidc(request(), name=identities[0], identities=identities)
    return header and header.partition(";")[0]


def test_whom_the_list_does_not_name_has_no_session(house: House) -> None:
    assert by_oidc(house, "mallory@evil.example") is None
    cookie = by_oidc(house, "bob@example.com")
    assert cookie
    assert house.caller(cookie) == Caller("bob@example.com", Role.VIEWER)


@pytest.mark.parametrize(
    "provider",
    [
        None,
        replace(PROVIDER, issuer="https://other.example.com"),
        replace(PROVIDER, client_id="them"),
        replace(PROVIDER, allowed=AllowList.parse(["bob@example.com=admin"])),
    ],
)
def test_a_session_by_oidc_ends_with_its_provider_and_its_place_on_the_list(
    house: House, provider: OidcProvider | None
) -> None:
    cookie = by_oidc(house, "alice@example.com")
    assert cookie
    assert house.caller(cookie) == Caller("alice@example.com", Role.ADMIN)
    house.door = replace(DOOR, oidc=provider)
    assert house.caller(cookie) is None


def test_a_session_by_oidc_is_not_that_of_a_user_of_the_same_name(house: House) -> None:
    house.door = replace(DOOR, oidc=replace(PROVIDER, allowed=AllowList.parse(["ada=viewer"])))
    cookie = by_oidc(house, "ada")
    assert cookie
    assert house.caller(cookie) == Caller("ada", Role.VIEWER)
    Users(house.home / "users.json").remove("ada")
    assert house.caller(cookie) == Caller("ada", Role.VIEWER)


@pytest.mark.parametrize("fields", [{"name": 5}, {"sha256": 5}, {"identities": 5}, {"good_until": "soon"}, {"more": 1}])
def test_a_file_of_sessions_with_wrong_types_lets_nobody_in(tmp_path: Path, fields: dict[str, object]) -> None:
    house = House(tmp_path)
    cookie = house.log_in()
    file = tmp_path / "sessions.json"
    (entry,) = json.loads(file.read_text())
    file.write_text(json.dumps([{**entry, **fields}]))
    assert house.caller(cookie) is None
    with pytest.raises(SettingsError, match="everybody logs in anew"):
        house.log_in()


def test_half_a_character_in_a_provider_s_name_does_not_end_everybody_s_sessions(tmp_path: Path) -> None:
    house = House(tmp_path)
    cookie = house.log_in()
    login = house.login
    login.sessions.begin(name="\ud800", way=LoginWay.OIDC, identities=("\ud800", "sub:\udfff"), version="v")
    assert house.caller(cookie)
