"""The login at an OIDC provider, against a provider that runs here: who gets in, and what cannot be used twice."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import oidc_provider_mock
import pytest
import requests

from orchestrator.operate.web import oidc
from orchestrator.operate.web.door import OidcProvider
from orchestrator.operate.web.oidc import MOST_USED_STATES, START_GOOD_SECONDS, OidcClient, OidcFailed, OidcPerson
from orchestrator.settings.people import AllowList
from orchestrator_tests.operate.web.test_login import Clock
from orchestrator_tests.support.ui import EVIL, HTML, USERS, Ui, served

PEOPLE: Mapping[str, Mapping[str, object]] = {
    "1": {"email": "alice@example.com", "email_verified": True, "preferred_username": "alice"},
    "2": {"email": "bob@example.com", "email_verified": True},
    "3": {"email": "alice@example.com", "email_verified": False, "preferred_username": "mallory"},
    "4": {"email": "alice@example.com", "email_verified": "true", "preferred_username": "mallory"},
    "5": {"email": "mallory@evil.example", "email_verified": True, "preferred_username": "alice@example.com"},
    "6": {"email": "mallory@evil.example", "email_verified": True, "preferred_username": "sub:7"},
    "7": {},
    "8": {"preferred_username": "carol"},
}
ALLOWED = "alice@example.com=admin,*@example.com=viewer,carol=launcher,sub:7=viewer"
CALLBACK = "http://127.0.0.1:3000/login/oidc/callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    users = [oidc_provider_mock.User(sub=sub, claims=dict(claims)) for sub, claims in PEOPLE.items()]
    with oidc_provider_mock.run_server_in_thread(user_claims=users, require_nonce=True) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def provider(issuer: str, **changes: Any) -> OidcProvider:
    values = {"issuer": issuer, "client_id": "us", "client_secret": "x", "allowed": AllowList.parse(ALLOWED.split(","))}
    return OidcProvider(**{**values, **changes})


def authorized(url: str, sub: str) -> Mapping[str, str]:
    """What the provider sends the browser back with, after that person has logged in there."""
    answer = requests.post(url, data={"sub": sub}, allow_redirects=False, timeout=30)
    assert answer.status_code in (302, 303), answer.text
    return dict(parse_qsl(urlsplit(answer.headers["Location"]).query))


class Visit:
    """One browser's login at the provider, as far as the way back."""

    def __init__(self, client: OidcClient, sub: str) -> None:
        self.client = client
        begun = asyncio.run(client.start(redirect_uri=CALLBACK, target="/runs"))
        self.url, self.cookie = begun.url, begun.cookie
        self.parameters = authorized(self.url, sub)

    def finish(self, **changes: Any) -> OidcPerson:
        values = {"cookie": self.cookie, "parameters": self.parameters, **changes}
        return asyncio.run(self.client.finish(**values))


def test_the_browser_is_sent_with_state_nonce_and_pkce(issuer: str) -> None:
    begun = asyncio.run(OidcClient(provider(issuer)).start(redirect_uri=CALLBACK, target="/"))
    asked = {name: values[0] for name, values in parse_qs(urlsplit(begun.url).query).items()}
    assert begun.url.startswith(f"{issuer}/")
    assert (asked["response_type"], asked["client_id"], asked["redirect_uri"]) == ("code", "us", CALLBACK)
    assert asked["code_challenge_method"] == "S256"
    assert all(len(asked[name]) >= 20 for name in ("state", "nonce", "code_challenge"))
    assert "openid" in asked["scope"].split()


@pytest.mark.parametrize(
    ("sub", "identities", "role"),
    [
        ("1", ("alice@example.com", "alice", "sub:1"), "admin"),
        ("2", ("bob@example.com", "sub:2"), "viewer"),
        ("3", ("mallory", "sub:3"), None),
        ("4", ("mallory", "sub:4"), None),
        ("5", ("mallory@evil.example", "sub:5"), None),
        ("6", ("mallory@evil.example", "sub:6"), None),
        ("7", ("sub:7",), "viewer"),
        ("8", ("carol", "sub:8"), "launcher"),
    ],
)
def test_only_what_the_provider_vouches_for_counts(
    issuer: str, sub: str, identities: tuple[str, ...], role: str | None
) -> None:
    ours = provider(issuer)
    person = Visit(OidcClient(ours), sub).finish()
    called = "mallory sub:" + sub if identities[0] == "mallory" else identities[0]
    assert person == OidcPerson(name=called, identities=identities, target="/runs")
    assert ours.allowed.role_of(person.identities) == role


@pytest.mark.parametrize("name", ["ada", "ui", "Ada"])
def test_a_name_that_people_choose_is_nobody_else_s_in_the_log(name: str) -> None:
    """`orchestrator/launched-by` and the audit log would say that the user `ada` has done it, or UI_TOKEN's owner."""
    people = [oidc_provider_mock.User(sub="9", claims={"preferred_username": name})]
    with oidc_provider_mock.run_server_in_thread(user_claims=people, require_nonce=True) as server:
        anybody = provider(f"http://127.0.0.1:{server.server_port}", allowed=AllowList.parse(["*=launcher"]))
        assert Visit(OidcClient(anybody), "9").finish().name == f"{name} sub:9"
        named = provider(anybody.issuer, allowed=AllowList.parse([f"{name}=launcher"]))
        assert Visit(OidcClient(named), "9").finish().name == name


def test_a_callback_is_good_for_once(issuer: str) -> None:
    visit = Visit(OidcClient(provider(issuer)), "1")
    assert visit.finish()
    with pytest.raises(OidcFailed, match="has been used already"):
        visit.finish()
    # Even a process that knows nothing of the first time has the provider against it.
    visit.client._used.clear()
    with pytest.raises(OidcFailed, match="has not confirmed"):
        visit.finish()


def test_a_callback_is_its_own_browser_s_alone(issuer: str) -> None:
    client = OidcClient(provider(issuer))
    mine, other = Visit(client, "1"), Visit(client, "2")
    body, _, mac = mine.cookie.partition(".")
    begun = json.loads(base64.urlsafe_b64decode(body))
    forged = base64.urlsafe_b64encode(json.dumps({**begun, "target": "/x"}).encode()).decode()
    stranger = Visit(OidcClient(provider(issuer)), "2")
    for cookie in ("", "x", ".", "\u00e9.\u00e9", f"{forged}.{mac}", f"{body}.", other.cookie, stranger.cookie):
        with pytest.raises(OidcFailed, match="not begun in this browser"):
            mine.finish(cookie=cookie)
    for state in ("", "x", "\u00e9", other.parameters["state"]):
        with pytest.raises(OidcFailed, match="not begun in this browser"):
            mine.finish(parameters={**mine.parameters, "state": state})
    assert mine.finish().name == "alice@example.com"


def test_a_login_that_takes_too_long_is_begun_anew(issuer: str) -> None:
    clock = Clock()
    visit = Visit(OidcClient(provider(issuer), now=clock), "1")
    clock.now += START_GOOD_SECONDS
    with pytest.raises(OidcFailed, match="too long ago"):
        visit.finish()


def test_a_code_of_another_login_is_not_taken(issuer: str) -> None:
    """PKCE and the nonce: whoever has got somebody's code cannot put it into a login of his own."""
    client = OidcClient(provider(issuer))
    victim, thief = Visit(client, "1"), Visit(client, "3")
    with pytest.raises(OidcFailed, match="has not confirmed"):
        thief.finish(parameters={**thief.parameters, "code": victim.parameters["code"]})


def test_a_refusal_of_the_provider_logs_nobody_in(issuer: str) -> None:
    visit = Visit(OidcClient(provider(issuer)), "1")
    state = visit.parameters["state"]
    with pytest.raises(OidcFailed, match="has not logged you in"):
        visit.finish(parameters={"state": state, "error": "access_denied"})
    with pytest.raises(OidcFailed, match="used already"):
        visit.finish()


@pytest.mark.parametrize("claim", ["nothing", "iss", "aud", "exp", "nonce"])
def test_an_id_token_for_somebody_else_is_not_taken(issuer: str, claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit(OidcClient(provider(issuer)), "1")
    fetch = oidc._App.fetch_access_token
    wrong = {"nothing": None, "iss": "https://evil.example", "aud": "them", "exp": 1, "nonce": "x"}[claim]

    def with_wrong_claim(app: Any, *arguments: Any, **options: Any) -> Any:
        """Signed by the provider's own key, as by one that serves several clients."""
        token = fetch(app, *arguments, **options)
        payload = token["id_token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
        monkeypatch.setattr("joserfc.jwt.decode", lambda *_a, **_k: Decoded({**claims, claim: wrong}))
        return token

    monkeypatch.setattr(oidc._App, "fetch_access_token", with_wrong_claim)
    if claim == "nothing":
        assert visit.finish()
        return
    with pytest.raises(OidcFailed, match="has not confirmed"):
        visit.finish()


class Decoded:
    """An ID token whose signature was right."""

    def __init__(self, claims: Mapping[str, object]) -> None:
        self.claims = claims
        self.header = {"alg": "RS256"}


def test_an_id_token_whose_signature_is_wrong_is_not_taken(issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = oidc._App.fetch_access_token
    for alg, signature in (("RS256", "AAAA"), ("none", ""), ("HS256", "AAAA")):
        visit = Visit(OidcClient(provider(issuer)), "1")

        def forged(app: Any, *arguments: Any, alg: str = alg, signature: str = signature, **options: Any) -> Any:
            token = fetch(app, *arguments, **options)
            _, payload, _ = token["id_token"].split(".")
            header = base64.urlsafe_b64encode(json.dumps({"alg": alg}).encode()).decode().rstrip("=")
            return {**token, "id_token": f"{header}.{payload}.{signature}"}

        with monkeypatch.context() as patched:
            patched.setattr(oidc._App, "fetch_access_token", forged)
            with pytest.raises(OidcFailed, match="has not confirmed"):
                visit.finish()


def test_a_provider_that_is_not_there_or_is_another_is_no_traceback(
    issuer: str, caplog: pytest.LogCaptureFixture
) -> None:
    gone = OidcClient(provider("http://127.0.0.1:1"))
    with pytest.raises(OidcFailed, match="does not work at the moment"):
        asyncio.run(gone.start(redirect_uri=CALLBACK, target="/"))
    assert "Cannot log in at http://127.0.0.1:1" in caplog.text
    other = OidcClient(provider(issuer.replace("127.0.0.1", "localhost")))
    assert asyncio.run(other.start(redirect_uri=CALLBACK, target="/"))
    visit = Visit(OidcClient(provider(issuer)), "1")
    visit.client._provider = provider(f"{issuer}/elsewhere")
    visit.client._discovered = None
    with pytest.raises(OidcFailed, match="has not confirmed"):
        visit.finish()


def test_memory_is_bounded_whatever_states_were_used() -> None:
    client = OidcClient(provider("http://127.0.0.1:1"))
    assert all(client._use(str(number)) for number in range(MOST_USED_STATES + 100))
    assert len(client._used) == MOST_USED_STATES
    assert not client._use(str(MOST_USED_STATES + 99))


# ---- Served


@pytest.fixture(scope="module")
def ui(issuer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with served(
        tmp_path_factory.mktemp("ui"),
        OPENID_PROVIDER_URL=issuer,
        OAUTH_CLIENT_ID="us",
        OAUTH_CLIENT_SECRET="the-client-secret",
        OIDC_ALLOWED=ALLOWED,
        users=USERS,
    ) as ui:
        yield ui


def in_browser(ui: Ui, sub: str) -> tuple[requests.Session, requests.Response]:
    """A browser that has followed the button, logged in at the provider, and come back."""
    browser = requests.Session()
    begun = browser.get(f"{ui.origin}/login/oidc?next=/runs", allow_redirects=False, timeout=60)
    assert begun.status_code == 303
    address = f"{ui.origin}/login/oidc/callback?{urlencode(authorized(begun.headers['Location'], sub))}"
    # As a browser sends what another site has led it to.
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    return browser, browser.get(address, headers={**headers, **dict([HTML])}, allow_redirects=False, timeout=60)


def test_a_person_logs_in_and_out_by_the_provider(ui: Ui) -> None:
    page = ui.send("GET", "/runs", HTML)
    assert 'href="/login/oidc?next=%2Fruns"' in page.text
    assert "token" not in ui.command.output.split("Dagster runs on ")[1].splitlines()[0]
    browser, answer = in_browser(ui, "1")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs")
    assert (
        "Log out · alice@example.com · admin" in browser.get(f"{ui.origin}/runs", headers=dict([HTML]), timeout=60).text
    )
    again = browser.get(answer.url, headers=dict([HTML]), timeout=60)  # replayed in the same browser
    assert again.status_code == 403
    assert requests.get(answer.url, headers=dict([HTML]), timeout=60).status_code == 403  # and in another one
    out = browser.post(f"{ui.origin}/logout", headers={"Origin": ui.origin}, allow_redirects=False, timeout=60)
    assert out.status_code == 303
    assert browser.get(f"{ui.origin}/server_info", timeout=60).status_code == 401
    audit = [json.loads(line) for line in Path(ui.home / "audit.jsonl").read_text().splitlines()]
    assert [(line["who"], line["login"], line["action"]) for line in audit[-2:]] == [
        ("alice@example.com", "oidc", "login"),
        ("alice@example.com", "oidc", "logout"),
    ]


def test_whom_nobody_has_let_in_is_told_so(ui: Ui) -> None:
    for sub in ("3", "5"):
        browser, answer = in_browser(ui, sub)
        assert answer.status_code == 403
        assert "whom nobody has let in here" in answer.text
        assert browser.get(f"{ui.origin}/server_info", timeout=60).status_code == 401


def test_another_site_cannot_read_the_callback(ui: Ui) -> None:
    for path in ("/login/oidc", "/login/oidc/callback?code=x&state=y"):
        assert ui.send("GET", path, ("Origin", EVIL)).status == 403
        assert ui.send("GET", path, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")).status == 403
        assert ui.send("POST", path, ("Origin", ui.origin), body="").status == 401
    assert "the-client-secret" not in ui.command.output
