"""People in a served UI: they log in, do what their role allows under their own name, and log out."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from orchestrator import names
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.users import Users
from orchestrator_tests.support.ui import (
    EVIL,
    HTML,
    PASSWORD,
    REPOSITORY,
    TOKEN,
    USERS,
    Answer,
    Ui,
    add_partition,
    served,
)
from orchestrator_tests.support.waiting import until

PROXY = "127.0.0.2"
LAUNCHED_BY = names.RunTag.LAUNCHED_BY
FORGED = (
    f'[{{key:"{LAUNCHED_BY}",value:"ada"}},{{key:"dagster/partition",value:"1"}},{{key:"{LAUNCHED_BY}",value:"x"}}]'
)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with served(
        tmp_path_factory.mktemp("ui"),
        roles=["viewer", "launcher", "admin"],
        users=USERS,
        UI_TOKEN=TOKEN,
        TRUSTED_PROXY=f"X-Forwarded-User {PROXY}/32",
        TRUSTED_PROXY_ALLOWED="pam=launcher,*@example.com=viewer",
        UI_HOSTS="orch.example",
    ) as ui:
        assert ui.graphql(add_partition("1"), ui.bearer()).status == 200
        yield ui


def audit(ui: Ui) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (ui.home / "audit.jsonl").read_text().splitlines()]


# ---- In and out


def test_the_page_asks_for_a_name_and_a_password_and_offers_the_token(ui: Ui) -> None:
    page = ui.send("GET", "/runs", HTML)
    assert page.status == 401
    for part in ('name="username"', 'type="password"', 'autocomplete="current-password"', "Log in with a token"):
        assert part in page.text
    assert "dagster" not in page.text.lower()
    assert TOKEN not in page.text


@pytest.mark.parametrize(("name", "role"), USERS.items())
def test_a_user_logs_in_and_may_do_what_the_role_allows(ui: Ui, name: str, role: Role) -> None:
    answer = ui.log_in(name)
    assert (answer.status, answer.headers["location"]) == (303, "/runs")
    assert "HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
    cookie = ("Cookie", answer.headers["set-cookie"].partition(";")[0])
    page = ui.send("GET", "/runs", HTML, cookie)
    assert f"Log out · {name} · {role}" in page.text
    denied = "UnauthorizedError" in ui.graphql(add_partition(f"by-{name}"), cookie, ("Origin", ui.origin)).text
    assert denied is (role is not Role.ADMIN)
    assert (f"by-{name}" in ui.partitions()) is (role is Role.ADMIN)


def test_a_wrong_password_and_a_name_that_is_nobody_s_have_the_same_answer(ui: Ui) -> None:
    answers = [ui.log_in(name, "not the password") for name in ("ada", "nobody")]
    texts = {answer.text for answer in answers}
    assert [answer.status for answer in answers] == [401, 401]
    assert len(texts) == 1
    assert "That is not the name and the password." in texts.pop()
    assert not [answer for answer in answers if "set-cookie" in answer.headers]
    assert "not the password" not in ui.command.output
    assert PASSWORD not in ui.command.output


def test_a_flood_of_names_is_refused_at_once_and_keeps_nobody_else_out(ui: Ui) -> None:
    """Each name was waited for by one of two threads, and so was everybody who came after them."""
    with ThreadPoolExecutor(64) as flood:
        tries = [flood.submit(ui.log_in, f"nobody-{n}", "x" * 20, source="127.66.0.6") for n in range(64)]
        real = ui.log_in("vic", source="127.77.0.7")
        answers = [each.result() for each in tries]
    assert real.status == 303
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} <= {401, 429, 503}
    assert refused
    for answer in refused:
        assert int(answer.headers["retry-after"]) > 0
        assert "Too many logins are tried at once" in answer.text
        assert 'name="password"' in answer.text
    assert ui.log_in("vic", source="127.66.0.6").status == 303


def test_a_file_of_users_that_cannot_be_read_is_said_on_the_login_page(ui: Ui) -> None:
    file = ui.home / "users.json"
    good = file.read_bytes()
    cookie = ui.session("vic")
    try:
        for broken in (b'[{"name": 5}]', good.replace(b'"vic"', b"5"), b"{}", b"\xff", b"[" * 99_999):
            file.write_bytes(broken)
            assert ui.send("GET", "/server_info", cookie).status == 401
            for answer in (ui.send("GET", "/login", HTML), ui.log_in("vic")):
                assert "The file of the users cannot be read" in answer.text
                assert "Log in with a token" in answer.text
            assert ui.log_in("vic").status == 503
            assert ui.send("GET", "/server_info", ui.bearer()).status == 200
        file.chmod(0o644)
        assert ui.log_in("vic").status == 503
    finally:
        file.chmod(0o600)
        file.write_bytes(good)
    assert ui.log_in("vic").status == 303
    assert "is not as we write it (0 name: Input should be a valid string)" in ui.command.output
    assert "chmod 600" in ui.command.output
    assert "Traceback" not in ui.command.output


def test_another_site_can_neither_log_its_visitor_in_nor_out(ui: Ui) -> None:
    cookie = ui.session("vic")
    form = ("Content-Type", "application/x-www-form-urlencoded")
    for headers in ([("Origin", EVIL)], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]):
        assert ui.send("POST", "/login", form, *headers, body=f"username=vic&password={PASSWORD}").status == 403
        assert ui.send("POST", "/logout", form, cookie, *headers, body="").status == 403
    assert ui.send("GET", "/server_info", cookie).status == 200


def test_who_logs_out_is_out(ui: Ui) -> None:
    cookie = ui.session("lou")
    asked = ui.send("GET", "/logout", HTML, cookie)
    assert "You are logged in as lou" in asked.text
    assert ui.send("GET", "/server_info", cookie).status == 200  # a mere link logs nobody out
    answer = ui.send("POST", "/logout", cookie, ("Origin", ui.origin), body="")
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert ui.send("GET", "/server_info", cookie).status == 401
    assert [line["action"] for line in audit(ui) if line["who"] == "lou"][-2:] == ["login", "logout"]


@pytest.mark.parametrize("change", ["remove", "role", "password"])
def test_what_is_changed_of_a_user_ends_sessions_and_open_websockets(ui: Ui, change: str) -> None:
    users = Users(ui.home / "users.json")
    users.add("eve", Role.ADMIN, PASSWORD)
    cookie = ui.session("eve")
    with socket(ui, cookie, ("Origin", ui.origin)) as opened:
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(30))["type"] == "connection_ack"
        if change == "role":
            users.change("eve", role=Role.VIEWER)
        elif change == "password":
            users.change("eve", password="another password")
        users.remove("eve")
        assert ui.send("GET", "/server_info", cookie).status == 401
        with pytest.raises(ConnectionClosed):  # noqa: PT012 - the first may be on its way already
            opened.send(json.dumps({"id": "1", "type": "start", "payload": {"query": "subscription{__typename}"}}))
            while True:
                assert json.loads(opened.recv(30))["type"] == "ka"
    with pytest.raises(InvalidStatus):
        socket(ui, cookie, ("Origin", ui.origin))


def socket(ui: Ui, *headers: tuple[str, str]) -> ClientConnection:
    return connect(
        f"ws://{ui.host}/graphql",
        subprotocols=[Subprotocol("graphql-ws")],
        additional_headers=list(headers),
        proxy=None,
    )


# ---- Under one's own name

SELECTOR = f'selector:{{{REPOSITORY},jobName:"training_training"}}'
EXECUTION = f'{{{SELECTOR},executionMetadata:{{tags:{FORGED}}},runConfigData:"{{}}"}}'
RUN = "{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}"
BACKFILL = "{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}"


def as_lou(ui: Ui, mutation: str) -> Any:
    """The answer to a launcher, who says that somebody else has sent it."""
    answer = ui.graphql(f"mutation{{it:{mutation}}}", ui.session("lou"), ("Origin", ui.origin))
    assert answer.status == 200, answer
    return answer.data()["it"]


def tags_of(ui: Ui, run_id: str) -> Mapping[str, str]:
    query = f'{{runOrError(runId:"{run_id}"){{... on Run{{tags{{key value}}}}}}}}'
    return {tag["key"]: tag["value"] for tag in ui.graphql(query, ui.bearer()).data()["runOrError"]["tags"]}


def launched(ui: Ui) -> str:
    return str(as_lou(ui, f"launchRun(executionParams:{EXECUTION}){RUN}")["run"]["runId"])


@pytest.mark.parametrize("mutation", ["launchRun", "launchPipelineExecution"])
def test_a_launch_is_under_one_s_own_name(ui: Ui, mutation: str) -> None:
    run_id = as_lou(ui, f"{mutation}(executionParams:{EXECUTION}){RUN}")["run"]["runId"]
    assert tags_of(ui, run_id)[LAUNCHED_BY] == "lou"
    assert tags_of(ui, run_id)["dagster/partition"] == "1"
    (line,) = [line for line in audit(ui) if run_id in line.get("ids", [])]
    assert (line["who"], line["role"], line["login"], line["from"]) == ("lou", "launcher", "password", "127.0.0.1")
    assert (line["action"], line["result"]) == (mutation, "LaunchRunSuccess")
    assert run_id in "".join(row for row in ui.command.output.splitlines() if "Audit: {" in row)


def test_several_launches_are_under_one_s_own_name(ui: Ui) -> None:
    answer = as_lou(
        ui,
        f"launchMultipleRuns(executionParamsList:[{EXECUTION},{EXECUTION}])"
        f"{{... on LaunchMultipleRunsResult{{launchMultipleRunsResult{RUN}}}}}",
    )
    for result in answer["launchMultipleRunsResult"]:
        assert tags_of(ui, result["run"]["runId"])[LAUNCHED_BY] == "lou"


@pytest.mark.services
@pytest.mark.parametrize("inherits", ["true", "false"])
def test_a_reexecution_is_under_one_s_own_name(ui: Ui, inherits: str) -> None:
    answer = ui.graphql(f"mutation{{launchRun(executionParams:{EXECUTION}){RUN}}}", ui.bearer("admin"))
    parent = answer.data()["launchRun"]["run"]["runId"]
    assert tags_of(ui, parent)[LAUNCHED_BY] == "of-admin"
    until(
        lambda: "SUCCESS" in ui.graphql(f'{{runOrError(runId:"{parent}"){{... on Run{{status}}}}}}', ui.bearer()).text,
        seconds=120,
    )
    again = f'{{parentRunId:"{parent}",strategy:ALL_STEPS,extraTags:{FORGED},useParentRunTags:{inherits}}}'
    answer = as_lou(ui, f"launchRunReexecution(reexecutionParams:{again}){RUN}")
    assert tags_of(ui, answer["run"]["runId"])[LAUNCHED_BY] == "lou"
    metadata = f'executionMetadata:{{tags:{FORGED},parentRunId:"{parent}",rootRunId:"{parent}"}}'
    again = EXECUTION.replace(f"executionMetadata:{{tags:{FORGED}}}", metadata)
    for mutation in ("launchRunReexecution", "launchPipelineReexecution"):
        answer = as_lou(ui, f"{mutation}(executionParams:{again}){RUN}")
        assert tags_of(ui, answer["run"]["runId"])[LAUNCHED_BY] == "lou"


@pytest.mark.services
def test_a_backfill_and_its_repetition_are_under_one_s_own_name(ui: Ui) -> None:
    assets = 'assetSelection:[{path:["training","trained_model"]}],partitionNames:["1"]'
    query = f"launchPartitionBackfill(backfillParams:{{{assets},tags:{FORGED}}}){BACKFILL}"
    first = ui.graphql(f"mutation{{it:{query}}}", ui.bearer("admin")).data()["it"]["backfillId"]
    own = as_lou(ui, query)["backfillId"]

    def backfill(backfill_id: str, what: str) -> Any:
        query = f'{{partitionBackfillOrError(backfillId:"{backfill_id}"){{... on PartitionBackfill{{{what}}}}}}}'
        return ui.graphql(query, ui.bearer()).data()["partitionBackfillOrError"]

    def names_in(holder: Any) -> list[str]:
        return [tag["value"] for tag in holder["tags"] if tag["key"] == LAUNCHED_BY]

    until(lambda: "COMPLETED" in backfill(first, "status")["status"], seconds=180)
    repetition = f'{{parentRunId:"{first}",strategy:ALL_STEPS}}'
    again = as_lou(ui, f"reexecutePartitionBackfill(reexecutionParams:{repetition}){BACKFILL}")["backfillId"]
    assert names_in(backfill(first, "tags{key value}")) == ["of-admin"]
    for mine in (own, again):
        until(lambda mine=mine: "COMPLETED" in backfill(mine, "status")["status"], seconds=180)  # type: ignore[misc]
        made = backfill(mine, "tags{key value} runs(limit:9){tags{key value}}")
        assert made["runs"]
        for holder in (made, *made["runs"]):
            assert names_in(holder) == ["lou"]
    assert own in [line["ids"][0] for line in audit(ui) if line["action"] == "launchPartitionBackfill"]
    as_lou(ui, f'cancelPartitionBackfill(backfillId:"{first}"){{__typename}}')
    assert names_in(backfill(first, "tags{key value}")) == ["of-admin"]
    as_lou(ui, f'resumePartitionBackfill(backfillId:"{first}"){{__typename}}')
    assert names_in(backfill(first, "tags{key value}")) == ["lou"]  # what it launches from now on, he launches


def test_who_cancels_changes_and_is_refused_stands_in_the_audit_log(ui: Ui) -> None:
    run_id = launched(ui)
    as_lou(ui, f'terminateRun(runId:"{run_id}"){{__typename}}')
    assert ui.graphql(add_partition("\\u001b[2J\\u202e\\n{}"), ui.session("vic"), ("Origin", ui.origin)).status == 200
    assert ui.graphql('mutation{setConcurrencyLimit(concurrencyKey:"x",limit:2)}', ui.session("ada")).status == 200
    assert (
        ui.send(
            "POST",
            "/report_asset_materialization/a",
            ("Content-Type", "application/json"),
            ui.bearer("admin"),
            body="{}",
        ).status
        == 200
    )
    lines = audit(ui)
    seen = {(line["who"], line["action"], line.get("result")) for line in lines}
    assert ("vic", "addDynamicPartition", "UnauthorizedError") in seen
    assert ("of-admin", "report", None) in seen
    assert [line for line in lines if line["action"] == "terminateRun" and line["of"]["runId"] == run_id]
    assert [line for line in lines if line["action"] == "setConcurrencyLimit" and line["who"] == "ada"]
    file = ui.home / "audit.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().replace("\n", "").isprintable()
    assert file.read_text().isascii()
    assert PASSWORD not in file.read_text()


# ---- A trusted proxy


def proxied(
    ui: Ui, *headers: tuple[str, str], source: str = PROXY, path: str = "/server_info", **kwargs: Any
) -> Answer:
    return ui.send("GET", path, *headers, source=source, **kwargs)


def test_who_comes_through_the_proxy_has_the_role_of_the_list(ui: Ui) -> None:
    def role(name: str) -> str:
        body = json.dumps({"query": "{permissions{permission value}}"})
        headers = (("X-Forwarded-User", name), ("Content-Type", "application/json"))
        answer = ui.send("POST", "/graphql", *headers, body=body, source=PROXY)
        if answer.status != 200:
            return str(answer.status)
        may = [entry["permission"] for entry in answer.data()["permissions"] if entry["value"]]
        return {0: "viewer", 5: "launcher"}.get(len(may), "admin")

    assert [role(name) for name in ("pam", "PAM", "x@example.com", "mallory", "pam, ada")] == [
        "launcher",
        "launcher",
        "viewer",
        "403",
        "403",
    ]


def test_from_anybody_else_the_header_counts_for_nothing(ui: Ui) -> None:
    user = ("X-Forwarded-User", "pam")
    assert proxied(ui, user).status == 200
    for source in ("127.0.0.1", "127.0.0.3"):
        assert proxied(ui, user, source=source).status == 401
        assert proxied(ui, user, ("X-Forwarded-For", PROXY), source=source).status == 401
        assert proxied(ui, user, ("Forwarded", f"for={PROXY}"), source=source).status == 401
        assert proxied(ui, user, ui.session("vic"), source=source).status == 200


def test_a_proxy_that_says_it_twice_says_nothing(ui: Ui) -> None:
    for headers in ([("X-Forwarded-User", "pam")] * 2, [("X-Forwarded-User", "mallory"), ("x-forwarded-user", "pam")]):
        assert proxied(ui, *headers).status == 400
    assert proxied(ui, ("X-Forwarded-User", "p" * 300)).status == 400
    assert proxied(ui, ("X-Forwarded-User", "")).status == 401
    assert proxied(ui).status == 401


def test_the_guard_stays_behind_the_proxy(ui: Ui) -> None:
    user = ("X-Forwarded-User", "pam")
    json_type = ("Content-Type", "application/json")
    for headers in ([("Origin", EVIL)], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]):
        assert ui.send("POST", "/graphql", user, json_type, *headers, body="{}", source=PROXY).status == 403
    assert proxied(ui, user, host="evil.example").status == 421
    assert proxied(ui, user, ("X-Forwarded-Host", "evil.example")).status == 421
    assert proxied(ui, user, path="/graphql?query={version}").status == 405
    assert ui.send("POST", "/report_asset_materialization/a", user, json_type, body="{}", source=PROXY).status == 403


def test_what_the_proxy_says_of_the_way_is_believed(ui: Ui) -> None:
    said = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "orch.example"),
        ("X-Forwarded-For", "203.0.113.9, 198.51.100.7"),
    ]
    answer = ui.log_in("vic", source=PROXY)
    assert answer.status == 303
    form = ("Content-Type", "application/x-www-form-urlencoded")
    origin = ("Origin", "https://orch.example")
    answer = ui.send("POST", "/login", form, origin, *said, body=f"username=vic&password={PASSWORD}", source=PROXY)
    assert answer.status == 303
    assert answer.headers["set-cookie"].startswith("__Host-orchestrator-443=")
    assert answer.headers["set-cookie"].endswith("; Secure")
    assert audit(ui)[-1]["from"] == "198.51.100.7"
    for client, address in (
        ("203.0.113.9, 198.51.100.7:5678", "198.51.100.7"),
        ('"[2001:db8::7]:99"', "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        (f"198.51.100.8:1, {PROXY}:2", "198.51.100.8"),
        ("198.51.100.8:1:2", PROXY),
    ):
        said[2] = ("X-Forwarded-For", client)
        ui.send("POST", "/login", form, origin, *said, body=f"username=vic&password={PASSWORD}", source=PROXY)
        assert audit(ui)[-1]["from"] == address
    answer = ui.send("POST", "/login", form, *said, body=f"username=vic&password={PASSWORD}")
    assert answer.headers["set-cookie"].startswith(f"orchestrator-{ui.port}=")
    assert audit(ui)[-1]["from"] == "127.0.0.1"
