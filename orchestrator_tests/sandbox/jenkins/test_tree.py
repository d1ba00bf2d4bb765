"""The sandbox's Jenkins shows the part of a job that `tree=` and `depth=` ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_sandbox.jenkins.tree import Bean, ByDepth, MalformedTreeError, Tree, export
from orchestrator_tests.support.jenkins_client import COMMIT, UNTRIGGERED, Client, numbers


@pytest.fixture(scope="module")
def long_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JenkinsServer]:
    """10,000 builds, every third failed; the newest still runs."""
    with JenkinsServer(tmp_path_factory.mktemp("long")) as server:
        server.create_job("long", UNTRIGGERED)
        for number in range(1, 10_000):
            server.add_build("long", result="SUCCESS" if number % 3 else "FAILURE", commit=COMMIT)
        server.add_build("long", result=None)
        yield server


@pytest.mark.parametrize(
    ("tree", "shown"),
    [
        ("name", {"name": "long"}),
        ("name,nextBuildNumber,nonsense", {"name": "long", "nextBuildNumber": 10_001}),
        ("lastBuild[number,result,building]", {"lastBuild": {"number": 10_000, "result": None, "building": True}}),
        ("lastSuccessfulBuild[number]", {"lastSuccessfulBuild": {"number": 9_998}}),
        ("lastFailedBuild[number]", {"lastFailedBuild": {"number": 9_999}}),
        ("lastUnstableBuild[number]", {"lastUnstableBuild": None}),
        ("firstBuild[number,previousBuild[number]]", {"firstBuild": {"number": 1, "previousBuild": None}}),
        ("firstBuild[nextBuild[number]]", {"firstBuild": {"nextBuild": {"number": 2}}}),
        ("allBuilds[number]{0,2}", {"allBuilds": [{"number": 10_000}, {"number": 9_999}]}),
        ("allBuilds[number]{,1}", {"allBuilds": [{"number": 10_000}]}),
        ("allBuilds[number]{9999,}", {"allBuilds": [{"number": 1}]}),
        ("allBuilds[number]{3}", {"allBuilds": [{"number": 9_997}]}),
        ("allBuilds[number]{5,5}", {"allBuilds": []}),
        ("allBuilds[number]{7,5}", {"allBuilds": []}),
        ("allBuilds[number]{20000,20010}", {"allBuilds": []}),
        ("allBuilds{,1}", {"allBuilds": [{}]}),
        ("allBuilds[id,nope[deeper]]{,1}", {"allBuilds": [{"id": "10000"}]}),
        ("allBuilds[actions[lastBuiltRevision[SHA1]]]{1,2}",
         {"allBuilds": [{"actions": [{}, {}, {"lastBuiltRevision": {"SHA1": COMMIT}}, {}, {}]}]}),
        ("*[number]", None),
    ],
)  # fmt: skip
def test_a_tree_selects_what_jenkins_would(long_history: JenkinsServer, tree: str, shown: object) -> None:
    answer = Client(long_history).json("job/long/", tree=tree)
    if shown is None:  # a wildcard: every property, and of objects the number
        assert answer["lastBuild"]["number"] == 10_000
        assert answer["name"] == "long"
        return
    assert without_class(answer) == shown
    assert answer["_class"] == "hudson.model.FreeStyleProject"


def without_class(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_class(inner) for key, inner in value.items() if key != "_class"}
    return [without_class(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("tree", ["", "a[", "a[]", "a]", "a,", ",a", "a{", "a{}", "a{x}", "a{1,2", "a{,}", "a}", "{1}"])
def test_a_malformed_tree_is_refused(long_history: JenkinsServer, tree: str) -> None:
    answer = requests.get(
        f"{long_history.url}job/long/api/json",
        params={"tree": tree},
        auth=(long_history.access.user, long_history.access.token),
        timeout=10,
    )
    assert answer.status_code == 500
    assert "Malformed tree expression" in answer.text
    with pytest.raises(MalformedTreeError):
        Tree.parse(tree)


def test_a_page_of_a_long_history_is_small(long_history: JenkinsServer) -> None:
    tree = "allBuilds[number,result,building,timestamp,url,actions[lastBuiltRevision[SHA1],remoteUrls]]{0,50}"
    answer = Client(long_history).get(f"job/long/api/json?tree={tree}")
    assert numbers(answer.json()) == list(range(10_000, 9_950, -1))
    assert len(answer.content) < 50_000


def test_the_default_listing_has_the_newest_hundred_builds_and_not_all(long_history: JenkinsServer) -> None:
    answer = Client(long_history).json("job/long/")
    assert "allBuilds" not in answer
    assert len(answer["builds"]) == 100
    assert answer["builds"][0] == {
        "_class": "hudson.model.FreeStyleBuild",
        "number": 10_000,
        "url": f"{long_history.url}job/long/10000/",
    }
    assert answer["color"] == "red_anime"


def test_depth_shows_more_of_what_is_nested(long_history: JenkinsServer) -> None:
    answer = Client(long_history).json("job/long/", depth="1")
    assert answer["builds"][1]["result"] == "FAILURE"
    assert "allBuilds" not in answer
    refused = Client(long_history).get("job/long/api/json?depth=deep")
    assert refused.status_code == 500


def test_a_maps_keys_are_never_pruned() -> None:
    bean = Bean(None, lambda: {"map": {"x": Bean(None, lambda: {"a": 1, "b": 2})}})
    assert export(bean, Tree.parse("map[a]")) == {"map": {"x": {"a": 1}}}
    assert export(bean, ByDepth.of(1)) == {"map": {"x": {"a": 1, "b": 2}}}
