"""Every kind of path, by everybody, over real HTTP and real WebSockets: who gets in, and what he may do."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.certificate import certificate_in
from orchestrator_tests.support.commands import running
from orchestrator_tests.support.ui import EVIL, HTML, TOKEN, USERS, Ui, add_partition, launch, served
from orchestrator_tests.support.waiting import until

JSON = ("Content-Type", "application/json")
ROLES = ("viewer", "launcher", "admin")

READING = [
    "/",
    "/runs",
    "/assets/training/trained_model?view=overview",
    "/deployment/locations",
    "/server_info",
    "/dagit_info",
    "/graphql",
    "/logs/a/b.out",
    "/download_debug/abc",
    "/notebook?path=x.ipynb&repoLocName=orchestrator",
    "/dagit/notebook?path=x.ipynb&repoLocName=orchestrator",
    "/favicon.ico",
    "/favicon.png",
    "/robots.txt",
    "/manifest.json",
    "/vendor/graphiql/graphiql.min.css",
    "/_next/static",
    "/loginx",
    "/login/",
    "/login/../server_info",
    "/login%2f..%2fserver_info",
    "//login",
    "/health/live/",
    "/health/livex",
    "/health/live%0a",
    "/health",
    "/logout/",
    "/logoutx",
    "/login/oidc/callback?code=x&state=y",
    "/metrics",
    "/static/../health/live/../../server_info",
]
REPORTS = [f"/report_asset_{what}/training/jenkins_build" for what in ("materialization", "check", "observation")]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    folder = tmp_path_factory.mktemp("ui")
    with served(folder, roles=ROLES, users=USERS, UI_TOKEN=TOKEN, UI_HOSTS="orch.example") as ui:
        yield ui


@pytest.fixture(scope="module")
def people(ui: Ui) -> Mapping[str, tuple[str, str]]:
    """Role → the header of a browser in which a user of that role has logged in."""
    return {role.value: ui.session(name) for name, role in USERS.items()}


@pytest.fixture(scope="module")
def ended(ui: Ui) -> tuple[str, str]:
    """The header of a browser that has kept the cookie of a session which was ended by a log-out."""
    session = ui.session("ada")
    assert ui.send("POST", "/logout", session, ("Origin", ui.origin), body="").status == 303
    return session


def kinds(ui: Ui, ended: tuple[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Everybody who gets nothing, and what he sends."""
    name, cookie = ui.cookie()
    return {
        "no login": [],
        "wrong cookie": [(name, cookie[:-4] + "beef")],
        "the token as a cookie": [(name, f"{cookie.partition('=')[0]}={TOKEN}")],
        "foreign origin": [(name, cookie), ("Origin", EVIL)],
        "null origin": [(name, cookie), ("Origin", "null")],
        "another port's page": [(name, cookie), ("Origin", f"http://127.0.0.1:{ui.port + 1}")],
        "another site": [(name, cookie), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
        "foreign origin with a token": [ui.bearer(), ("Origin", EVIL)],
        "foreign origin with a machine's token": [ui.bearer("admin"), ("Origin", EVIL)],
        "a session that was ended": [ended],
        "a session of another port": [(name, ended[1].replace(str(ui.port), str(ui.port + 1)))],
        "somebody's name as a session": [(name, f"{ended[1].partition('=')[0]}=ada")],
        "whom no proxy has sent": [("X-Forwarded-User", "ada"), ("X-Forwarded-For", "127.0.0.1")],
        "basic": [("Authorization", "Basic YWRtaW46YWRtaW4=")],
    }


METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE")


def get_nothing(ui: Ui, who: Mapping[str, list[tuple[str, str]]], method: str, path: str) -> None:
    for kind, headers in who.items():
        answer = ui.send(method, path, JSON, *headers, body="{}" if method == "POST" else None)
        assert answer.status in (400, 401, 403, 405), (kind, answer)
        assert "dagster" not in answer.text.lower(), kind
    rebound = ui.send(method, path, ui.cookie(), host=f"evil.example:{ui.port}")
    assert rebound.status == 421
    assert method == "HEAD" or "UI_HOSTS" in rebound.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [*READING, *REPORTS])
def test_who_may_not_come_in_gets_nothing_anywhere(ui: Ui, ended: tuple[str, str], method: str, path: str) -> None:
    """Each kind at each path, each by each method, and every path by every method."""
    shift = [*READING, *REPORTS].index(path) + METHODS.index(method)
    who = {kind: headers for place, (kind, headers) in enumerate(kinds(ui, ended).items()) if (place - shift) % 4 == 0}
    get_nothing(ui, who, method, path)


@pytest.mark.services
@pytest.mark.parametrize("method", METHODS)
def test_nor_does_any_kind_at_any_path_by_any_method(ui: Ui, ended: tuple[str, str], method: str) -> None:
    for path in (*READING, *REPORTS):
        get_nothing(ui, kinds(ui, ended), method, path)


@pytest.mark.parametrize("path", READING)
def test_who_is_let_in_gets_what_dagster_has(ui: Ui, people: Mapping[str, tuple[str, str]], path: str) -> None:
    for credential in (ui.cookie(), ui.bearer(), *map(ui.bearer, ROLES), *people.values()):
        answer = ui.send("GET", path, HTML, credential)
        assert answer.status not in (401, 403, 405, 421), answer
        if path != "/health/live%0a":
            assert answer.status in (200, 404, 500), answer  # what Dagster says of a log or run that does not exist


def test_health_is_open_and_tells_nothing(ui: Ui) -> None:
    answer = ui.send("GET", "/health/live")
    assert (answer.status, answer.text) == (200, "ok\n")
    assert not {"server", "x-powered-by"} & set(answer.headers)
    assert ui.send("HEAD", "/health/live").status == 200
    assert ui.send("GET", "/health/live", host="10.1.2.3:3000").status == 200
    assert ui.send("GET", "/health/live", host="evil.example").status == 421
    assert ui.send("POST", "/health/live", body="").status == 401


def test_a_refusal_without_a_login_names_no_version(ui: Ui) -> None:
    for headers in ((), (HTML,)):
        text = ui.send("GET", "/", *headers).text
        assert dg.__version__ not in text
        assert "dagster" not in text.lower()


# ---- Opening it


def test_the_address_with_the_token_opens_the_ui(ui: Ui) -> None:
    with requests.Session() as browser:
        page = browser.get(f"{ui.origin}/assets?token={TOKEN}&view=x", headers=dict([HTML]), timeout=60)
        assert page.ok
        assert page.url == f"{ui.origin}/assets?view=x"  # no token remains in the history
        assert "Dagster" in page.text
        assert browser.get(f"{ui.origin}/server_info", timeout=60).ok
        asked = browser.post(
            f"{ui.origin}/graphql?op=RootQuery", json={"query": "{version}"}, headers={"Origin": ui.origin}, timeout=60
        )
        assert asked.json()["data"]["version"]


def test_a_cookie_is_set_for_this_host_and_port_alone(ui: Ui) -> None:
    for host, name in ((ui.host, ui.port), ("localhost", 80), ("orch.example:8443", 8443)):
        answer = ui.send("GET", f"/?token={TOKEN}", ("X-Forwarded-Proto", "https"), host=host)
        assert answer.headers["set-cookie"].startswith(f"orchestrator-{name}=")
        assert "HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
        assert answer.headers["location"] == "/"
        assert answer.headers["cache-control"] == "no-store"


def test_the_form_opens_the_ui_and_goes_on_to_the_page_that_was_asked_for(ui: Ui) -> None:
    asked = ui.send("GET", "/runs/1?x=%22%3Cb%3E", HTML)
    assert asked.status == 401
    assert 'name="next" value="/runs/1?x=%22%3Cb%3E"' in asked.text
    form = ("Content-Type", "application/x-www-form-urlencoded")
    own = ("Origin", ui.origin)
    answer = ui.send("POST", "/login", form, own, HTML, body=f"next=%2Fruns%2F1&token=+{TOKEN}+")
    assert (answer.status, answer.headers["location"]) == (303, "/runs/1")
    cookie = ("Cookie", answer.headers["set-cookie"].partition(";")[0])
    assert ui.send("GET", "/server_info", cookie).status == 200
    away = ("https://evil.example/x", "//evil.example/x", "/\\evil.example", "javascript:alert(1)", "http://[")
    for target in (*away, "%0d%0aX: y", "/x?%0d%0aX: y"):
        answer = ui.send("POST", "/login", form, own, body=f"next={target}&token={TOKEN}")
        assert answer.status == 303
        assert answer.headers["location"].startswith("/")
        assert not answer.headers["location"].startswith(("//", "/\\"))
        assert "x" not in answer.headers


def test_another_site_cannot_log_its_visitor_in(ui: Ui) -> None:
    form = ("Content-Type", "application/x-www-form-urlencoded")
    for headers in ([("Origin", EVIL)], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]):
        assert ui.send("POST", "/login", form, *headers, body=f"token={TOKEN}").status == 403
    assert ui.send("POST", "/login", ("Content-Type", "text/plain"), body=f"token={TOKEN}").status == 415
    assert ui.send("POST", "/login", form, body=f"token={'x' * 20_000}").status == 413


def test_a_wrong_token_is_refused_however_it_comes(ui: Ui) -> None:
    form = ("Content-Type", "application/x-www-form-urlencoded")
    in_address = ui.send("GET", f"/?token={TOKEN[:-1]}", HTML)
    assert in_address.status == 401
    assert "That is not the token" in in_address.text
    assert ui.send("GET", "/server_info", ("Authorization", f"Bearer {TOKEN}x")).status == 401
    # A wrong token is not made good by a cookie, else a machine would not learn that its token has ended.
    assert ui.send("GET", "/server_info", ("Authorization", "Bearer x"), ui.cookie()).status == 401
    assert ui.send("POST", "/login", form, body="token=x").status == 401
    for answer in (in_address, ui.send("GET", "/?token=", HTML)):
        assert "set-cookie" not in answer.headers
        assert TOKEN[:-1] not in answer.text
    # Who is in already is led to the page: he has opened an address of an earlier start once more.
    assert ui.send("GET", "/runs?token=old", ui.cookie()).headers["location"] == "/runs"


# ---- Pages


def test_the_page_has_dagster_s_policy_and_ours(ui: Ui) -> None:
    page = ui.send("GET", "/", HTML, ui.cookie())
    policy = page.headers["content-security-policy"].split("; ")
    nonce = next(part for part in policy[2].split() if part.startswith("'nonce-"))
    assert f'nonce="{nonce[7:-1]}"' in page.text
    assert "'strict-dynamic'" in policy[2]
    assert policy[-1] == "frame-ancestors 'none'"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert "strict-transport-security" not in page.headers
    # Browsers ignore this one without TLS, and complain on the console.
    assert "cross-origin-opener-policy" not in ui.send("GET", "/", HTML, host="orch.example").headers


def test_the_scripts_and_styles_of_the_page_are_served(ui: Ui) -> None:
    page = ui.send("GET", "/", HTML, ui.cookie()).text
    paths = [part.split('"')[0] for part in page.split('src="')[1:] if part.startswith("/")]
    assert paths
    for path in paths:
        script = (("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "script"))
        assert ui.send("GET", path, ui.cookie(), *script).status == 200


# ---- Roles


def permitted(ui: Ui, role: str) -> set[str]:
    answer = ui.graphql("{permissions{permission value}}", ui.bearer(role)).data()
    return {entry["permission"] for entry in answer["permissions"] if entry["value"]}


def test_a_role_is_dagster_s_own_permissions_so_that_the_ui_greys_out_the_rest(ui: Ui) -> None:
    assert permitted(ui, "viewer") == set()
    assert permitted(ui, "launcher") == {
        "launch_pipeline_execution",
        "launch_pipeline_reexecution",
        "terminate_pipeline_execution",
        "launch_partition_backfill",
        "cancel_partition_backfill",
    }
    assert {"edit_sensor", "edit_concurrency_limit", "wipe_assets"} <= permitted(ui, "admin") == permitted(ui, "ui")


MUTATIONS = {
    "launch": launch("1"),
    "backfill": 'mutation{launchPartitionBackfill(backfillParams:{assetSelection:[{path:["training","trained_model"]}],'
    'partitionNames:["1"]}){__typename}}',
    "cancel": 'mutation{terminateRun(runId:"00000000-0000-0000-0000-000000000000"){__typename}}',
    "add partition": add_partition("by-role"),
    "limit": 'mutation{setConcurrencyLimit(concurrencyKey:"training_instances",limit:900)}',
    "wipe": 'mutation{wipeAssets(assetPartitionRanges:[{assetKey:{path:["training","trained_model"]}}]){__typename}}',
    "stop sensor": 'mutation{startSensor(sensorSelector:{repositoryName:"__repository__",'
    'repositoryLocationName:"orchestrator",sensorName:"janitor"}){__typename}}',
    "reload": 'mutation{reloadRepositoryLocation(repositoryLocationName:"orchestrator"){__typename}}',
    "report": "mutation{reportRunlessAssetEvents(eventParams:{eventType:ASSET_MATERIALIZATION,"
    'assetKey:{path:["training","jenkins_build"]},partitionKeys:["1"]}){__typename}}',
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_each_role_may_do_what_it_is_for(ui: Ui, people: Mapping[str, tuple[str, str]], what: str) -> None:
    for role in ROLES:
        may = role == "admin" or (role == "launcher" and what in ("launch", "backfill", "cancel"))
        for headers in ([ui.bearer(role)], [people[role], ("Origin", ui.origin)]):
            answer = ui.graphql(MUTATIONS[what], *headers)
            assert answer.status in (200, 500), answer  # 500: GraphQL's answer has no place for the refusal
            assert ("UnauthorizedError" in answer.text or "not authorized" in answer.text.lower()) is not may, answer
        foreign = ui.graphql(MUTATIONS[what], people[role], ("Origin", EVIL))
        assert foreign.status == 403, foreign
    assert ui.graphql(MUTATIONS[what]).status == 401


def test_every_role_reads(ui: Ui) -> None:
    for role in ROLES:
        answer = ui.graphql("{version runsOrError{__typename} instance{id}}", ui.bearer(role))
        assert answer.status == 200
        assert ui.send("GET", "/server_info", ui.bearer(role)).status == 200


def test_only_an_admin_s_token_in_the_header_reports_events(ui: Ui, people: Mapping[str, tuple[str, str]]) -> None:
    path = REPORTS[0] + "?partition=7"
    browser = ui.cookie()
    for headers in (
        [browser],
        [browser, ("Origin", ui.origin)],
        [ui.bearer("viewer")],
        [ui.bearer("launcher")],
        *([session, ("Origin", ui.origin)] for session in people.values()),
    ):
        assert ui.send("POST", path, JSON, *headers, body="{}").status == 403
        assert ui.send("POST", path.replace("/training", "/../x/training"), JSON, *headers, body="{}").status == 403
    assert ui.send("POST", path, JSON, ui.bearer("admin"), body="{}").status == 200
    assert ui.send("POST", path, JSON, ui.bearer(), body="{}").status == 200


def test_a_machine_s_token_works_from_when_it_is_added_until_it_is_removed(ui: Ui) -> None:
    tokens = MachineTokens(ui.home)
    headers = [("Authorization", f"Bearer {tokens.add('late', Role.VIEWER)}")]
    assert ui.send("GET", "/server_info", *headers).status == 200
    tokens.remove("late")
    assert ui.send("GET", "/server_info", *headers).status == 401


# ---- WebSockets


def socket(ui: Ui, *headers: tuple[str, str]) -> ClientConnection:
    return connect(
        f"ws://{ui.host}/graphql",
        subprotocols=[Subprotocol("graphql-ws")],
        additional_headers=list(headers),
        proxy=None,
    )


@pytest.mark.parametrize("who", ["token", "machine", *ROLES])
def test_a_websocket_of_our_own_page_gets_a_subscription(
    ui: Ui, people: Mapping[str, tuple[str, str]], who: str
) -> None:
    query = (
        'subscription{pipelineRunLogs(runId:"00000000-0000-0000-0000-000000000000")'
        "{__typename ... on PipelineRunLogsSubscriptionFailure{message missingRunId}}}"
    )
    cookie = ui.cookie() if who == "token" else people.get(who)
    credentials = [cookie, ("Origin", ui.origin)] if cookie else [ui.bearer("viewer")]
    with socket(ui, *credentials) as opened:
        assert opened.response
        assert opened.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(30))["type"] == "connection_ack"
        opened.send(json.dumps({"id": "1", "type": "start", "payload": {"query": query}}))
        answer = json.loads(opened.recv(30))
        assert answer["payload"]["data"]["pipelineRunLogs"]["__typename"] == "PipelineRunLogsSubscriptionFailure"


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_websocket_changes_nothing(ui: Ui, people: Mapping[str, tuple[str, str]], what: str) -> None:
    query = {**MUTATIONS, "add partition": add_partition("by-websocket")}[what]
    for headers in ([ui.bearer("admin")], *([session, ("Origin", ui.origin)] for session in people.values())):
        with socket(ui, *headers) as opened:
            opened.send(json.dumps({"id": "1", "type": "start", "payload": {"query": query}}))
            assert json.loads(opened.recv(30))["type"] == "error"
    assert "by-websocket" not in ui.partitions()


def test_whoever_may_not_come_in_opens_no_websocket(ui: Ui, ended: tuple[str, str]) -> None:
    for kind, headers in kinds(ui, ended).items():
        with pytest.raises(InvalidStatus) as refusal:
            socket(ui, *headers)
        assert refusal.value.response.status_code == 403, kind
    with pytest.raises(InvalidStatus) as refusal:
        socket(ui, ui.cookie(), ("Sec-Fetch-Site", "same-site"))
    assert refusal.value.response.status_code == 403


# ---- Bytes


@pytest.mark.parametrize(
    "hosts",
    [b"", b"Host: 127.0.0.1\r\nHost: evil.example\r\n", b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n", b"Host:\r\n"],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_request_without_one_host_is_refused(ui: Ui, hosts: bytes, version: bytes) -> None:
    for start in (b"GET /health/live", b"GET http://127.0.0.1/health/live"):
        assert b" 400" in ui.raw(start + b" HTTP/" + version + b"\r\n" + hosts + b"\r\n")


@pytest.mark.parametrize("path", [b"/graphql%0a", b"/graphql%0A?query={version}", b"/graphql%00", b"/graphql%0d"])
def test_a_line_break_in_the_path_is_no_way_round(ui: Ui, path: bytes) -> None:
    cookie = ui.cookie()[1].encode()
    request = b"GET " + path + b" HTTP/1.1\r\nHost: " + ui.host.encode() + b"\r\nCookie: " + cookie + b"\r\n\r\n"
    assert b" 400" in ui.raw(request)


# ---- Files, processes, logs


def test_no_file_of_the_home_is_for_others(ui: Ui) -> None:
    ui.graphql(add_partition("1"), ui.bearer())
    ui.graphql(launch("1"), ui.bearer())
    query = "{runsOrError{... on Runs{results{status}}}}"
    until(lambda: "SUCCESS" in ui.graphql(query, ui.bearer()).text, seconds=120)
    files = [path for path in [ui.home, *ui.home.rglob("*")] if not path.is_symlink()]
    assert any(path.suffix in (".out", ".err", ".complete") for path in files)
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_the_token_is_in_no_command_line_no_environment_of_a_child_and_no_output(ui: Ui) -> None:
    ui.send("GET", f"/?token={TOKEN}")
    ui.send("GET", f"/%00?token={TOKEN}")
    ui.raw(f"GET /?token={TOKEN} HTTP/9\r\n\r\n".encode())
    tokens = [TOKEN, *ui.tokens.values()]
    until(lambda: len(ui.command.family()) >= 5)  # ourselves, webserver and daemon, and a code server of each
    for process in ui.command.family():
        try:
            line, environment = " ".join(process.cmdline()), process.environ()
        except psutil.NoSuchProcess:  # a run's helper, which has just ended
            continue
        assert not [token for token in tokens if token in line]
        assert process.pid == ui.command.process.pid or TOKEN not in environment.values()
    assert not [token for token in tokens if token in ui.command.output]
    assert not [path for path in ui.home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_wrong_token_is_in_the_output_by_its_address_only(ui: Ui) -> None:
    ui.send("GET", "/?token=a-wrong-token-that-may-be-a-slip")
    until(lambda: "Refused a wrong token from 127.0.0.1" in ui.command.output)
    assert "a-wrong-token" not in ui.command.output


# ---- Other doors


@pytest.mark.services
def test_without_a_login_the_guard_stays(tmp_path: Path) -> None:
    with served(tmp_path, roles=["viewer"], UI_LOGIN="off") as ui:
        assert "UI_LOGIN=off" in ui.command.output
        assert "token=" not in ui.command.output
        assert ui.send("GET", "/server_info").status == 200
        assert ui.graphql("{version}", ("Origin", ui.origin)).status == 200
        for headers in ([("Origin", EVIL)], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]):
            assert ui.graphql("{version}", *headers).status == 403
        assert ui.send("GET", "/server_info", host="evil.example").status == 421
        assert ui.send("GET", "/graphql?query={version}").status == 405
        assert ui.send("POST", REPORTS[0], JSON, body="{}").status == 403
        assert "UnauthorizedError" in ui.graphql(add_partition("x"), ui.bearer("viewer")).text
        assert ui.send("GET", "/server_info", ("Authorization", "Bearer wrong")).status == 401
        with pytest.raises(InvalidStatus):
            socket(ui, ("Origin", EVIL))


@pytest.mark.services
def test_with_tls_the_cookie_is_the_host_s_and_browsers_stay_with_tls(tmp_path: Path) -> None:
    certificate, key = certificate_in(tmp_path)
    frames = "https://huggingface.co"
    words = ("--cert", str(certificate), "--key", str(key))
    with (
        served(tmp_path, *words, UI_TOKEN=TOKEN, UI_FRAME_ANCESTORS=frames, UI_HOSTS="orch.example") as ui,
        requests.Session() as browser,
    ):
        browser.trust_env = False  # it would name other certificates
        browser.verify = str(certificate)
        assert "Warning" not in ui.command.output
        url = f"https://localhost:{ui.port}"
        first = browser.get(f"{url}/?token={TOKEN}", allow_redirects=False, timeout=60)
        assert first.headers["Set-Cookie"].startswith(f"__Host-orchestrator-{ui.port}=")
        assert first.headers["Set-Cookie"].endswith("; Secure")
        page = browser.get(f"{url}/", timeout=60)
        assert page.ok
        assert page.headers["Content-Security-Policy"].endswith(f"frame-ancestors {frames}")
        assert "X-Frame-Options" not in page.headers
        assert "Strict-Transport-Security" not in page.headers  # on localhost it would bind all other ports, too
        named = browser.get(f"{url}/health/live", headers={"Host": "orch.example"}, timeout=60)
        assert named.headers["Strict-Transport-Security"] == "max-age=31536000"
        for origin, status in ((url, 200), (url.replace("https", "http"), 403)):
            answer = browser.post(f"{url}/graphql", json={"query": "{version}"}, headers={"Origin": origin}, timeout=60)
            assert answer.status_code == status


def test_what_is_wrong_is_said_before_anything_listens(tmp_path: Path) -> None:
    port = str(free_port())
    for words, settings, complaint in (
        (["--host", "0.0.0.0"], {}, "UI_TOKEN is not set"),
        (["--host", "0.0.0.0"], {"UI_TOKEN": TOKEN}, "UI_INSECURE=true"),
        (["--host", "0.0.0.0"], {"UI_LOGIN": "off"}, "UI_LOGIN=off is for loopback addresses only"),
        ([], {"UI_TOKEN": "hunter2"}, "UI_TOKEN is wrong: it has fewer than 32 characters"),
        ([], {"UI_HOSTS": "a:1"}, "UI_HOSTS='a:1' is wrong"),
    ):
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **settings}
        with running("serve", "--port", port, *words, cwd=tmp_path, environment=environment) as command:
            assert command.process.wait(60) == 1
            (line,) = command.output.splitlines()
            assert line.startswith("orchestrator: ")
            assert complaint in line
            assert "hunter2" not in line
    assert not (tmp_path / ".dagster").exists()
