"""Servers that answer something other than what `tree=` asks for: what can be understood is, the rest is explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from orchestrator.errors import JenkinsBadAnswer
from orchestrator.pipeline.builds.cursor import Cursor
from orchestrator.pipeline.builds.discovery import discover
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.resources.jenkins import Jenkins
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings
from orchestrator_sandbox.proxy import FaultyProxy, ProxyFault
from orchestrator_tests.support.jenkins_model import Job, Model, served

ONE_TRY = RetryPolicy(total_seconds=0, connect_seconds=5, answer_seconds=10)

Fields = dict[str, Any]


def only(*names: str) -> Callable[[Fields], Fields]:
    return lambda fields: {name: value for name, value in fields.items() if name in ("name", *names)}


def oldest_first(fields: Fields) -> Fields:
    return {
        "name": fields["name"],
        "allBuilds": fields["allBuilds"][::-1],
        "nextBuildNumber": fields["nextBuildNumber"],
    }


def number_that_lags(fields: Fields) -> Fields:
    """As when a build begins between the two."""
    return fields | {"nextBuildNumber": max(1, fields["nextBuildNumber"] - 1)}


def references(fields: Fields) -> Fields:
    """As without `tree=`: builds are told by number and address."""

    def of(build: Fields) -> Fields:
        return {"_class": build["_class"], "number": build["number"], "url": build["url"]}

    lists = {key: list(map(of, fields[key])) for key in ("builds", "allBuilds")}
    return fields | lists | {"lastBuild": fields["lastBuild"] and of(fields["lastBuild"])}


DOCUMENTS = [
    pytest.param(lambda fields: fields, id="everything"),
    pytest.param(only("builds"), id="builds alone"),
    pytest.param(only("allBuilds"), id="allBuilds alone"),
    pytest.param(only("allBuilds", "lastBuild"), id="no next number"),
    pytest.param(only("allBuilds", "nextBuildNumber"), id="no builds, no lastBuild"),
    pytest.param(lambda fields: fields | {"builds": None}, id="null for builds"),
    pytest.param(lambda fields: fields | {"nextBuildNumber": "12"}, id="a next number that is none"),
    pytest.param(oldest_first, id="oldest first"),
    pytest.param(references, id="references"),
    pytest.param(number_that_lags, id="a number that lags"),
]


@contextmanager
def asking(model: Model) -> Iterator[Jenkins]:
    with served(model) as url:
        settings = JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job=model.job)
        with Jenkins(settings, policy=ONE_TRY) as jenkins:
            yield jenkins


class Ticks:
    """Ticks in a row."""

    def __init__(self, jenkins: Jenkins) -> None:
        self.jenkins = jenkins
        self.cursor: Cursor | None = None
        self.registered: set[int] = set()

    def __call__(self) -> list[int]:
        """Tick until nothing is unread; the numbers that were launched."""
        launched: list[int] = []
        while True:
            found = discover(self.jenkins, self.cursor, job=self.jenkins.job, limits=Limits(page=20))
            self.cursor = Cursor.model_validate_json(found.cursor.dump())
            self.registered |= {build.number for build in found.register}
            launched += [build.number for build in found.launch]
            if not found.unread:
                return launched


def launches_what_is_new(model: Model, name: str) -> None:
    """A past is registered, and what comes after it launched once, also when it ends late."""
    for _ in range(70):
        model.add(job=name)
    running = model.start(name)
    with asking(model) as jenkins:
        tick = Ticks(jenkins)
        assert tick() == [70]
        assert tick.registered == set(range(1, 71))
        assert tick() == []
        model.add(job=name)
        model.add("FAILURE", name)
        model.add(job=name)
        assert tick() == [72, 74]
        model.finish(running)
        assert tick() == [71]
        assert [tick() for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("multibranch", [False, True], ids=["plain", "multibranch"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_server_that_is_deaf_to_tree_is_understood(document: Callable[[Fields], Fields], multibranch: bool) -> None:
    model = Model(multibranch=multibranch, deaf=document)
    launches_what_is_new(model, "team/churn/main" if multibranch else "team/churn")


@pytest.mark.parametrize("multibranch", [False, True], ids=["plain", "multibranch"])
@pytest.mark.parametrize(
    "unknown",
    [
        {"allBuilds", "nextBuildNumber", "lastBuild"},
        {"allBuilds", "nextBuildNumber"},
        {"allBuilds", "lastBuild"},
        {"builds", "nextBuildNumber", "lastBuild"},
        {"builds", "nextBuildNumber"},
        {"builds", "lastBuild"},
        {"nextBuildNumber", "lastBuild"},
    ],
    ids=lambda names: "without " + ", ".join(sorted(names)),
)
def test_a_server_that_heeds_tree_and_lacks_some_fields_is_understood(unknown: set[str], multibranch: bool) -> None:
    model = Model(multibranch=multibranch, unknown_fields=frozenset(unknown))
    launches_what_is_new(model, "team/churn/main" if multibranch else "team/churn")


def test_without_all_builds_the_past_ends_with_what_builds_has() -> None:
    model = Model(unknown_fields=frozenset({"allBuilds", "nextBuildNumber"}))
    for _ in range(130):
        model.add()
    with asking(model) as jenkins:
        tick = Ticks(jenkins)
        assert tick() == [130]
        assert tick.registered == set(range(31, 131))  # `builds` ends there
        model.add()
        assert tick() == [131]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_job_that_is_re_created_is_noticed_there_too(document: Callable[[Fields], Fields]) -> None:
    model = Model(deaf=document)
    for _ in range(3):
        model.add()
    with asking(model) as jenkins:
        tick = Ticks(jenkins)
        tick()
        model.jobs[model.job] = Job()
        model.add()
        assert 1 in [number for _ in range(5) for number in tick()]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"nextBuildNumber": 5},
        {"nextBuildNumber": 5, "builds": 7},
        {"lastBuild": {"url": "http://elsewhere/"}},
        {"builds": [{"url": "http://elsewhere/5/"}], "nextBuildNumber": 6},
        {"name": "churn", "color": "blue"},
        {"jobs": 5},
        {"hello": "world"},
    ],
    ids=json.dumps,
)
def test_an_incomplete_answer_is_explained_in_one_sentence(answer: object) -> None:
    with FaultyProxy() as server:
        server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
        settings = JenkinsSettings(url=server.url, user="ci", token=SecretStr("t0ken"), job="team/churn")
        with (
            Jenkins(settings, policy=ONE_TRY) as jenkins,
            pytest.raises(JenkinsBadAnswer, match="JENKINS_URL") as error,
        ):
            discover(jenkins, None, job=jenkins.job)
        assert "\n" not in str(error.value)
        assert len(server.seen) <= 3


def test_one_incomplete_branch_costs_that_branch() -> None:
    model = Model(multibranch=True, jobs={"team/churn/main": Job(primary=True), "team/churn/odd": Job()})
    model.add(job="team/churn/main")
    model.add(job="team/churn/odd")
    model.deaf = lambda fields: only("nextBuildNumber")(fields) if fields["name"] == "odd" else fields
    with asking(model) as jenkins:
        found = discover(jenkins, None, job=jenkins.job)
    assert [build.job for build in found.launch] == ["team/churn/main"]
    assert len(found.faults) == 1
    assert "branch odd" in found.faults[0]
