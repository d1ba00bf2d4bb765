"""What `serve` refuses before it listens, in one sentence that names the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.door import HUGGING_FACE, Door
from orchestrator.operate.web.users import Users
from orchestrator_tests.support.certificate import certificate_in

LONG = "0123456789abcdef" * 2
NAMES = (
    *("DAGSTER_HOME", "ORCHESTRATOR_USERS_FILE", "TRUSTED_PROXY", "TRUSTED_PROXY_ALLOWED"),
    *("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_ALLOWED", *HUGGING_FACE),
    *("UI_HOSTS", "UI_LOGIN", "UI_TOKEN", "UI_INSECURE", "UI_FRAME_ANCESTORS", "SPACE_HOST"),
)


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def read(monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1", **settings: str) -> Door:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return Door.read(host=host, port=3000)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate_in(tmp_path_factory.mktemp("pem"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_on_loopback_each_start_has_a_random_token_in_its_address(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (read(monkeypatch, host) for _ in range(2))
    assert one.token
    assert other.token
    assert one.token != other.token
    assert len(one.token) >= 32
    assert one.url_to_open == f"{one.url}/?token={one.token}"
    assert one.token not in repr(one)


def test_a_token_of_the_settings_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    door = read(monkeypatch, UI_TOKEN=LONG)
    assert door.token == LONG
    assert door.url_to_open == "http://127.0.0.1:3000"


def test_on_loopback_the_login_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    door = read(monkeypatch, UI_LOGIN="off")
    assert not door.asks_for_token
    assert door.token is None
    assert door.url_to_open == "http://127.0.0.1:3000"


BEYOND = ("0.0.0.0", "::", "192.0.2.1", "orchestrator.example.com", "127.evil.example", "localhost.example.com", "")


@pytest.mark.parametrize("host", BEYOND)
def test_where_others_reach_it_there_is_no_default_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="UI_TOKEN is not set"):
        read(monkeypatch, host, UI_INSECURE="true")


@pytest.mark.parametrize("host", BEYOND)
def test_where_others_reach_it_the_login_cannot_be_switched_off(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="UI_LOGIN=off is for loopback addresses only"):
        read(monkeypatch, host, UI_LOGIN="off", UI_TOKEN=LONG, UI_INSECURE="true")


@pytest.mark.parametrize("host", BEYOND)
def test_where_others_reach_it_there_is_tls_or_the_user_says_that_nobody_listens(
    host: str, monkeypatch: pytest.MonkeyPatch, pem: tuple[Path, Path]
) -> None:
    with pytest.raises(SettingsError, match="--cert and --key, or set UI_INSECURE=true"):
        read(monkeypatch, host, UI_TOKEN=LONG)
    door = Door.read(host=host, port=3000, certificate=pem[0], key=pem[1])
    assert door.url.startswith("https://")
    assert read(monkeypatch, host, UI_TOKEN=LONG, UI_INSECURE="true").token == LONG


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "wrong", ["hunter2-hunter2", LONG[:-1], "x" * 31 + "\u00e4", "two words of more than 32 characters", " "]
)
def test_a_token_that_is_too_short_or_none_is_refused_and_not_shown(
    host: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="UI_TOKEN is") as refusal:
        read(monkeypatch, host, UI_TOKEN=wrong, UI_INSECURE="true")
    assert wrong == " " or wrong not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("UI_HOSTS", "orchestrator.example.com:443"),
        ("UI_HOSTS", "https://orchestrator.example.com"),
        ("UI_HOSTS", "*"),
        ("UI_HOSTS", "*.example.com"),
        ("UI_HOSTS", "good.example.com,a/b"),
        ("UI_HOSTS", "127.1"),
        ("UI_HOSTS", "[::1]:80"),
        ("UI_LOGIN", "no"),
        ("UI_LOGIN", "false"),
        ("UI_INSECURE", "perhaps"),
        ("UI_FRAME_ANCESTORS", "*"),
        ("UI_FRAME_ANCESTORS", "https://a.example; script-src *"),
        ("UI_FRAME_ANCESTORS", "https://a.example/path"),
        ("UI_FRAME_ANCESTORS", "javascript:alert(1)"),
        ("UI_FRAME_ANCESTORS", "https:"),
        ("UI_FRAME_ANCESTORS", "https://*"),
        ("UI_FRAME_ANCESTORS", "https://a.ex\u2028ample"),
        ("SPACE_HOST", "a b"),
    ],
)
def test_a_wrong_value_is_refused_with_the_setting_s_name(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=name) as refusal:
        read(monkeypatch, **{name: wrong})
    assert "\n" not in str(refusal.value)


def test_names_are_read_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    door = read(monkeypatch, UI_HOSTS="Orchestrator.Example.com, 2001:DB8:0::1,192.0.2.1", SPACE_HOST="me-it.hf.space")
    assert door.named_hosts == ("orchestrator.example.com", "2001:db8::1", "192.0.2.1", "me-it.hf.space")


def test_frame_ancestors_may_be_separated_by_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    door = read(monkeypatch, UI_FRAME_ANCESTORS="self, https://*.hf.space https://HuggingFace.co:443")
    assert door.frame_ancestors == ("'self'", "https://*.hf.space", "https://huggingface.co:443")


def test_certificate_and_key_are_tried_before_listening(tmp_path: Path, pem: tuple[Path, Path]) -> None:
    with pytest.raises(SettingsError, match="both --cert and --key"):
        Door.read(host="127.0.0.1", port=3000, certificate=pem[0])
    (tmp_path / "other").mkdir()
    foreign = certificate_in(tmp_path / "other")[1]
    for certificate, key in ((pem[1], pem[0]), (pem[0], foreign), (tmp_path / "none", pem[1])):
        with pytest.raises(SettingsError, match="cannot use the certificate") as refusal:
            Door.read(host="127.0.0.1", port=3000, certificate=certificate, key=key)
        assert "\n" not in str(refusal.value)


def test_an_encrypted_key_is_refused_instead_of_asked_for(tmp_path: Path) -> None:
    certificate, key = certificate_in(tmp_path, passphrase="secret")
    with pytest.raises(SettingsError, match="the key without a passphrase"):
        Door.read(host="127.0.0.1", port=3000, certificate=certificate, key=key)


def test_the_door_reaches_the_webserver_s_process_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    door = read(monkeypatch, UI_HOSTS="a.example,b.example", UI_FRAME_ANCESTORS="self")
    assert Door.from_json(door.to_json()) == door


@pytest.mark.parametrize(
    ("host", "url", "local"),
    [
        ("0.0.0.0", "http://0.0.0.0:3000", "http://127.0.0.1:3000"),
        ("::", "http://[::]:3000", "http://[::1]:3000"),
        ("localhost", "http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_we_reach_ourselves_where_we_listen(host: str, url: str, local: str) -> None:
    door = Door(host=host, port=3000)
    assert (door.url, door.local_url) == (url, local)


# ---- People


OIDC = {"OIDC_ISSUER": "https://id.example.com/", "OIDC_CLIENT_ID": "us", "OIDC_CLIENT_SECRET": "the-secret"}
ALLOWED = {"OIDC_ALLOWED": "alice@example.com=admin,*@example.com=viewer"}
PROXIED = {"TRUSTED_PROXY": "X-Forwarded-User 10.0.0.5", "TRUSTED_PROXY_ALLOWED": "alice=admin"}
SPACE = dict(zip(HUGGING_FACE, ("https://huggingface.co", "us", "the-secret"), strict=True))


@pytest.mark.parametrize("settings", [{**OIDC, **ALLOWED}, PROXIED, {**SPACE, **ALLOWED}])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_where_people_log_in_no_token_is_made_up_and_none_is_needed(
    host: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    door = read(monkeypatch, host, UI_INSECURE="true", **settings)
    assert door.token is None
    assert door.url_to_open == f"http://{host}:3000"
    assert "the-secret" not in repr(door)
    assert Door.from_json(door.to_json()) == door


def test_a_user_is_a_login_wherever_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with pytest.raises(SettingsError, match="UI_TOKEN is not set"):
        read(monkeypatch, "0.0.0.0", UI_INSECURE="true")
    Users(tmp_path / "people.json").add("ada", Role.ADMIN, "the password of the tests only")
    door = read(monkeypatch, "0.0.0.0", UI_INSECURE="true", ORCHESTRATOR_USERS_FILE="people.json")
    assert (door.token, door.users_file) == (None, str(tmp_path / "people.json"))
    with pytest.raises(SettingsError, match="--cert and --key, or set UI_INSECURE=true"):
        read(monkeypatch, "0.0.0.0", UI_INSECURE="false")


def test_networks_alone_are_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="UI_TOKEN is not set"):
        read(monkeypatch, "0.0.0.0", UI_INSECURE="true", TRUSTED_PROXY="10.0.0.5")
    assert read(monkeypatch, TRUSTED_PROXY="10.0.0.5").token


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (OIDC, "OIDC_ALLOWED is not set, and everybody whom https://id.example.com knows could log in"),
        (SPACE, "OIDC_ALLOWED is not set, and everybody whom https://huggingface.co knows could log in"),
        ({**OIDC, **ALLOWED, "OIDC_CLIENT_SECRET": ""}, "OIDC_CLIENT_SECRET is not set"),
        ({**OIDC, **ALLOWED, "OIDC_ISSUER": ""}, "OIDC_ISSUER is not set, and other OIDC_"),
        ({**OIDC, **ALLOWED, "OIDC_ISSUER": "http://id.example.com"}, "it is not reached by https"),
        ({**SPACE, **ALLOWED, "OPENID_PROVIDER_URL": "http://id.example.com"}, "OPENID_PROVIDER_URL is wrong"),
        ({**OIDC, "OIDC_ALLOWED": "alice"}, "'alice' has no role"),
        ({**PROXIED, "TRUSTED_PROXY_ALLOWED": ""}, "TRUSTED_PROXY_ALLOWED is not set, and everybody"),
        ({**PROXIED, "TRUSTED_PROXY": "X-Forwarded-User 0.0.0.0/0"}, "is everybody, who could then be anybody"),
        ({**PROXIED, "TRUSTED_PROXY": "X-Forwarded-User"}, "is no network"),
    ],
)
def test_half_a_login_is_refused_before_anything_listens(
    settings: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as refused:
        read(monkeypatch, **settings)
    assert complaint in str(refused.value)
    assert "the-secret" not in str(refused.value)
