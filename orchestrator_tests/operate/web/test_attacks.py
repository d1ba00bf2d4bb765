"""What a web page could do that the operator has open: each was done, and worked, before there was a guard.

A browser sends these requests from a page of evil.example; with the operator's cookie, as if no SameSite kept it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from orchestrator_tests.support.ui import EVIL, TOKEN, Answer, Ui, add_partition, launch, served

FORM = ("Content-Type", "application/x-www-form-urlencoded")
JSON = ("Content-Type", "application/json")
TEXT = ("Content-Type", "text/plain")
PAGE = (("Origin", EVIL), ("Referer", f"{EVIL}/x"), ("Sec-Fetch-Site", "cross-site"))
IMAGE = (("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image"))
REFUSED = (400, 401, 403, 405, 415, 421)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with served(tmp_path_factory.mktemp("ui"), UI_TOKEN=TOKEN) as ui:
        yield ui


@pytest.fixture(params=["no cookie", "cookie"])
def cookie(request: pytest.FixtureRequest, ui: Ui) -> tuple[tuple[str, str], ...]:
    return (ui.cookie(),) if request.param == "cookie" else ()


def in_address(query: str) -> str:
    return f"/graphql?query={quote(query)}"


def refused(answer: Answer) -> bool:
    return answer.status in REFUSED and "__typename" not in answer.text


def test_1_a_name_that_leads_here_by_rebinding_reaches_nothing(ui: Ui, cookie: tuple[tuple[str, str], ...]) -> None:
    for host in ("evil.example", f"evil.example:{ui.port}", "127.0.0.1.evil.example", "localhost.evil.example"):
        assert ui.send("GET", "/server_info", *cookie, host=host).status == 421
        assert ui.graphql("{version}", *cookie, host=host).status == 421
        assert ui.graphql("{version}", *cookie, ("Origin", f"http://{host}"), host=host).status == 421


def test_2_a_mutation_in_an_image_s_address_is_not_executed(ui: Ui, cookie: tuple[tuple[str, str], ...]) -> None:
    for headers in (PAGE, IMAGE, (("Accept", "image/avif,*/*"),)):
        assert refused(ui.send("GET", in_address(add_partition("image")), *headers, *cookie))
    assert "image" not in ui.partitions()


@pytest.mark.parametrize("content_type", [FORM, TEXT, ("Content-Type", "multipart/form-data; boundary=x"), None])
def test_3_a_mutation_in_a_form_s_address_is_not_executed(
    ui: Ui, cookie: tuple[tuple[str, str], ...], content_type: tuple[str, str] | None
) -> None:
    types = (content_type,) if content_type else ()
    for headers in (PAGE, ()):
        assert refused(ui.send("POST", in_address(add_partition("form")), *types, *headers, *cookie, body="x=1"))
    assert "form" not in ui.partitions()


def test_4_no_header_lets_another_site_read_an_answer(ui: Ui, cookie: tuple[tuple[str, str], ...]) -> None:
    preflight = ui.send("OPTIONS", "/graphql", ("Access-Control-Request-Method", "POST"), *PAGE, *cookie)
    page = ui.send("GET", "/server_info", *PAGE, *cookie)
    assert preflight.status == page.status == 403
    for answer in (preflight, page, ui.graphql("{version}", ui.bearer())):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("what", ["materialization", "check", "observation"])
def test_5_no_page_reports_an_asset_s_events(ui: Ui, cookie: tuple[tuple[str, str], ...], what: str) -> None:
    metadata = quote(json.dumps({"build": {"number": 66, "repository": "git://evil.example/backdoor"}}))
    path = f"/report_asset_{what}/training/jenkins_build?partition=66&check_name=x&passed=true&metadata={metadata}"
    for headers in (PAGE, (), (JSON,), (("Origin", ui.origin), JSON)):
        assert refused(ui.send("POST", path, *headers, *cookie, body="{}"))


def test_6_no_page_launches_a_training(ui: Ui, cookie: tuple[tuple[str, str], ...]) -> None:
    assert refused(ui.send("GET", in_address(launch("66")), *PAGE, *cookie))
    assert refused(ui.graphql(launch("66"), *PAGE, *cookie))
    assert ui.graphql("{runsOrError{... on Runs{results{id}}}}", ui.bearer()).data()["runsOrError"]["results"] == []


@pytest.mark.parametrize(
    "mutation",
    [
        'mutation{stopSensor(id:"x"){__typename}}',
        'mutation{setConcurrencyLimit(concurrencyKey:"training_instances",limit:900)}',
        "mutation{reloadWorkspace{__typename}}",
    ],
)
def test_7_and_8_no_page_stops_the_janitor_or_lifts_the_limit(
    ui: Ui, cookie: tuple[tuple[str, str], ...], mutation: str
) -> None:
    assert refused(ui.send("GET", in_address(mutation), *PAGE, *cookie))
    assert refused(ui.graphql(mutation, *PAGE, *cookie))


@pytest.mark.parametrize(
    "path",
    [
        "/logs/..%2f..%2f..%2fetc/passwd",
        "/logs/../../../../etc/passwd",
        "/logs/a/..%2f..%2f..%2fdagster.yaml/x",
        "/logs/%2fetc/passwd/out",
        "/notebook?repoLocName=orchestrator&path=/etc/passwd",
    ],
)
def test_9_no_path_leads_out_of_the_logs(ui: Ui, path: str) -> None:
    assert ui.send("GET", path).status in REFUSED
    assert "root:" not in ui.send("GET", path, ui.cookie()).text


def test_10_no_page_shows_the_ui_in_a_frame(ui: Ui) -> None:
    for path in ("/", "/login", "/graphql", "/logs/x/y.out", "/health/live"):
        answer = ui.send("GET", path, ("Accept", "text/html"), ui.cookie())
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
    framed = (("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe"))
    assert ui.send("GET", "/", *framed, ui.cookie()).status == 403


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost:1", "https://127.0.0.1", ""])
def test_11_no_page_opens_a_websocket(ui: Ui, cookie: tuple[tuple[str, str], ...], origin: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(
            f"ws://{ui.host}/graphql",
            subprotocols=["graphql-ws"],  # type: ignore[list-item]
            additional_headers=[("Origin", origin), *cookie],
            proxy=None,
        )
    assert refusal.value.response.status_code == 403


def test_three_requests_no_longer_run_code_on_an_instance(ui: Ui, cookie: tuple[tuple[str, str], ...]) -> None:
    build = {"number": 4242, "commit": "e" * 40, "repository": "git://evil.example/backdoor"}
    forged = ui.send(
        "POST",
        f"/report_asset_materialization/training/jenkins_build?partition=4242&metadata={quote(json.dumps(build))}",
        *PAGE,
        *cookie,
    )
    added = ui.send("GET", in_address(add_partition("4242")), *PAGE, *cookie)
    launched = ui.send("POST", in_address(launch("4242")), TEXT, *PAGE, *cookie, body="x")
    assert refused(forged)
    assert refused(added)
    assert refused(launched)
    assert "4242" not in ui.partitions()
    assert (
        "evil.example"
        not in ui.graphql(
            '{assetOrError(assetKey:{path:["training","jenkins_build"]}){... on Asset{assetMaterializations{label}}}}',
            ui.bearer(),
        ).text
    )
