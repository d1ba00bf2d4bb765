"""The guard's rules, without a server: who may ask for what, however it is spelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.routing import compile_path

from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming, headers_of
from orchestrator.operate.web.rules import Rules, is_report

HOST = "127.0.0.1:3000"
OWN = f"http://{HOST}"
DOOR = Door(host="127.0.0.1", port=3000)
NAMED = Door(host="0.0.0.0", port=3000, named_hosts=("orch.example",))
FRAMED = Door(host="127.0.0.1", port=3000, frame_ancestors=("https://huggingface.co",))
JSON = {"content-type": "application/json"}

DAGSTERS_GRAPHQL = compile_path("/graphql")[0]


def status(door: Door = DOOR, headers: Mapping[str, str | list[str]] | None = None, **request: Any) -> int:
    """200: not refused."""
    given: dict[str, Any] = {"host": HOST, **(headers or {})}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    refusal = Rules(door).refusal(Incoming(headers=lists, **request))
    return refusal.status if refusal else 200


# ---- Host


@pytest.mark.parametrize("host", [[], [HOST, HOST], [HOST, "evil.example"], [""], ["127.0.0.1:"], ["http://127.0.0.1"]])
def test_there_is_one_host_and_it_is_well_formed(host: list[str]) -> None:
    assert status(headers={"host": host}) == 400
    assert status(headers={"host": host}, path="/health/live") == 400


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "127.9.9.9:3000", "[::1]:3000"])
def test_this_machine_s_own_names_are_ours_at_any_port(host: str) -> None:
    assert status(headers={"host": host}) == 200  # a tunnel or a container's port has another number


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0:3000", "192.168.1.5", "[::]"])
def test_another_name_is_not_ours(host: str) -> None:
    assert status(headers={"host": host}) == 421


def test_the_refusal_says_which_setting_would_help() -> None:
    refusal = Rules(DOOR).refusal(Incoming(headers={"host": ["evil.example"]}))
    assert refusal
    assert "UI_HOSTS" in refusal.sentence
    assert "evil" not in refusal.sentence


def test_named_hosts_and_the_address_that_it_came_in_on_are_ours() -> None:
    for host in ("orch.example", "ORCH.example:3000", "10.0.0.7:3000"):
        assert status(NAMED, {"host": host}, local_address="10.0.0.7") == 200
    assert status(NAMED, {"host": "10.0.0.8:3000"}, local_address="10.0.0.7") == 421
    assert status(NAMED, {"host": "[fd00::7]:3000"}, local_address="fd00::7") == 200
    assert status(Door(host="box.lan", port=3000), {"host": "box.lan:3000"}, local_address="10.0.0.7") == 200


def test_a_health_check_may_come_by_any_address_but_by_no_other_name() -> None:
    assert status(headers={"host": "10.1.2.3:3000"}, path="/health/live") == 200
    assert status(headers={"host": "evil.example"}, path="/health/live") == 421
    assert status(headers={"host": "10.1.2.3:3000"}, path="/health/live/") == 421


# ---- Origin

FOREIGN = [
    "https://evil.example",
    "null",
    "",
    "http://127.0.0.1",
    "http://127.0.0.1:3001",
    "https://127.0.0.1:3000",
    "http://localhost:3000",
    "http://127.0.0.1:3000.evil.example",
    "http://127.0.0.1:3000@evil.example",
    "http://127.0.0.1:3000/",
    f"{OWN} {OWN}",
    "file://",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_a_foreign_origin_is_refused_whatever_it_asks_for(origin: str, method: str) -> None:
    assert status(headers={"origin": origin, **JSON}, method=method, path="/graphql") == 403
    assert status(headers={"origin": origin}, is_websocket=True, path="/graphql") == 403


def test_our_own_origin_is_the_one_that_the_request_was_made_to() -> None:
    assert status(headers={"origin": OWN, **JSON}, method="POST", path="/graphql") == 200
    assert status(headers={"origin": OWN}, is_websocket=True, path="/graphql") == 200
    other = {"host": "localhost:3000", "origin": "http://localhost:3000"}
    assert status(headers=other, method="POST") == 200
    assert status(headers={"host": "localhost", "origin": "http://localhost:80"}, method="POST") == 200
    assert status(headers={"origin": f"https://{HOST}"}, method="POST", scheme="https") == 200
    assert status(headers={"origin": OWN}, method="POST", scheme="https") == 403


def test_two_origins_are_refused() -> None:
    assert status(headers={"origin": [OWN, OWN]}, method="POST") == 400
    assert status(headers={"origin": [OWN, "https://evil.example"]}, method="POST") in (400, 403)


@pytest.mark.parametrize("forwarded", [{"x-forwarded-proto": "https"}, {"forwarded": "proto=https"}])
def test_nobody_is_believed_about_tls(forwarded: dict[str, str]) -> None:
    assert status(headers={"origin": f"https://{HOST}", **forwarded}, method="POST") == 403


def test_behind_a_proxy_that_ends_tls_the_named_host_is_our_own_with_https() -> None:
    named = {"host": "orch.example", "origin": "https://orch.example"}
    assert status(NAMED, named, method="POST") == 200
    assert status(NAMED, {**named, "host": "orch.example:3000"}, method="POST") == 403
    assert status(NAMED, {**named, "origin": "https://orch.example:3000"}, method="POST") == 403
    assert status(NAMED, {**named, "origin": "https://other.example"}, method="POST") == 403
    assert status(Door(host="0.0.0.0", port=80, named_hosts=("orch.example",)), named, method="POST") == 403
    assert status(DOOR, {"host": "localhost", "origin": "https://localhost"}, method="POST") == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "SAME-ORIGIN", "same-origin, cross-site"])
def test_without_an_origin_the_browser_s_word_for_the_site_decides(site: str) -> None:
    for request in ({"method": "POST"}, {"method": "OPTIONS"}, {"is_websocket": True}):
        assert status(headers={"sec-fetch-site": site}, **request) == 403
    assert status(headers={"sec-fetch-site": site, "origin": OWN}, method="POST") == 403


def test_the_ui_s_own_requests_and_programs_pass() -> None:
    for site in ("same-origin", "none"):
        assert status(headers={"sec-fetch-site": site, **JSON}, method="POST", path="/graphql") == 200
    assert status(headers=JSON, method="POST", path="/graphql") == 200
    assert status(headers={}, is_websocket=True, path="/graphql") == 200


def test_a_browser_that_does_not_name_the_site_is_no_program() -> None:
    assert status(headers={"sec-fetch-mode": "no-cors", **JSON}, method="POST", path="/graphql") == 403


def navigation(site: str = "cross-site", mode: str = "navigate", dest: str = "document") -> dict[str, str]:
    return {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}


def test_another_site_may_link_to_a_page_and_no_more() -> None:
    assert status(headers=navigation(), path="/runs/1") == 200
    assert status(headers=navigation("same-site"), path="/runs/1") == 200
    for parts in (
        navigation(dest="iframe"),
        navigation(dest="object"),
        navigation(mode="no-cors", dest="image"),
        navigation(mode="no-cors", dest="script"),
        navigation("same-site", mode="cors", dest="empty"),
        {"sec-fetch-site": "cross-site"},
    ):
        assert status(headers=parts, path="/logs/a/b.out") == 403
    assert status(headers=navigation(), method="POST") == 403


def test_who_may_frame_us_may_navigate_a_frame_to_us() -> None:
    assert status(FRAMED, navigation(dest="iframe")) == 200
    assert status(FRAMED, navigation(dest="object")) == 403
    assert status(FRAMED, navigation(mode="cors", dest="iframe")) == 403


# ---- Spelling


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "PROPFIND", "QUERY"])
def test_other_methods_are_refused(method: str) -> None:
    assert status(method=method) in (403, 405)
    assert status(headers={"origin": OWN}, method=method) == 405


@pytest.mark.parametrize("path", ["/graphql\n", "/\r\nx", "/\0", "/a\x7f", "*", "", "graphql", "http://127.0.0.1/"])
def test_a_path_is_a_path_without_control_characters(path: str) -> None:
    assert status(path=path) == 400


@pytest.mark.parametrize("name", ["authorization", "content-type", "sec-fetch-site"])
def test_a_header_that_decides_comes_once(name: str) -> None:
    assert status(headers={name: ["none", "none"]}) == 400


# ---- GraphQL


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "//graphql", "/./graphql", "/x/../graphql", "/GraphQL"])
@pytest.mark.parametrize("query", ["query={version}", "%71uery=x", "a=1&query=x", "query", "variables=", "op=X"])
def test_graphql_is_never_asked_by_get(method: str, path: str, query: str) -> None:
    assert status(method=method, path=path, query=query) == 405


def test_the_playground_s_page_has_no_query() -> None:
    assert status(path="/graphql") == 200


def test_an_asset_s_page_may_be_called_like_that() -> None:
    assert status(path="/assets/graphql", query="view=query") == 200
    assert status(path="/graphql-notes", query="query=x") == 200


@pytest.mark.parametrize(
    "query",
    [
        "query=x",
        "op=X&query=x",
        "query",
        "query=",
        "%71uery=x",
        "%2571uery=x",
        "%51UERY=x",
        "QUERY=x",
        "query[]=x",
        "query%00=x",
        "+query=x",
        "%20query=x",
        "a=1;query=x",
        "query=x&query=y",
        "&&query=x",
    ],
)
def test_the_query_stands_in_the_body(query: str) -> None:
    assert status(headers=JSON, method="POST", path="/graphql", query=query) == 400


def test_the_name_of_the_operation_may_stand_in_the_address() -> None:
    for query in ("op=RunsQuery", "op=", "op=query", "", "x=y"):
        assert status(headers=JSON, method="POST", path="/graphql", query=query) == 200


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_the_body_is_json(content_type: str) -> None:
    assert status(headers={"content-type": content_type}, method="POST", path="/graphql") == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain; x=application/json",
        "text/plain, application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/graphql",
        "application/json-patch+json",
        "application/jsonx",
        "",
        "*/*",
    ],
)
@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "//graphql", "/Graphql"])
def test_no_other_content_type_is_taken(content_type: str, path: str) -> None:
    assert status(headers={"content-type": content_type}, method="POST", path=path) == 415
    assert status(method="POST", path=path) == 415


@given(st.text(alphabet="qQuUeErRyY%75127+&;=[] \0\n", max_size=30))
def test_no_spelling_that_dagster_reads_as_a_query_passes(text: str) -> None:
    for query in (text, quote(text), f"op=X&{text}=1"):
        if "query" in QueryParams(query):
            assert status(headers=JSON, method="POST", path="/graphql", query=query) == 400
            assert status(path="/graphql", query=query) == 405


@given(st.text(alphabet="/graphqlGRAPHQL.%\n\r \\;\0", max_size=14).map(lambda text: f"/{text}"))
def test_no_path_that_dagster_reads_as_graphql_passes(path: str) -> None:
    if DAGSTERS_GRAPHQL.match(path):
        assert status(path=path, query="query=x") in (400, 405)
        assert status(method="POST", path=path) in (400, 415)


@given(st.text(max_size=20), st.sampled_from(["materialization", "check", "observation"]))
def test_every_report_is_known_as_one(rest: str, what: str) -> None:
    pattern = compile_path(f"/report_asset_{what}/{{asset_key:path}}")[0]
    path = f"/report_asset_{what}/{rest}"
    assert pattern.match(path) is None or is_report(Incoming(path=path, headers={}))
    for spelled in (
        f"/report_asset_{what}/../../x",
        f"//report_asset_{what}/x",
        f"/./report_asset_{what}/x",
        f"/REPORT_ASSET_{what}/x",
    ):
        assert is_report(Incoming(path=spelled, headers={}))


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=5))
def test_any_bytes_are_headers(pairs: list[tuple[bytes, bytes]]) -> None:
    assert sum(map(len, headers_of(pairs).values())) == len(pairs)


@given(st.binary(max_size=40), st.binary(max_size=40), st.text(max_size=20), st.binary(max_size=40))
def test_no_input_is_an_error_of_ours(host: bytes, origin: bytes, path: str, query: bytes) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "query_string": query,
        "headers": [(b"Host", host), (b"Origin", origin)],
        "server": ("127.0.0.1", 3000),
    }
    Rules(DOOR).refusal(Incoming.of(scope))
