"""Attacks on recorded builds: what anybody may report as an event of `P/jenkins_build` is not what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from orchestrator.errors import BuildUnusable, JenkinsUnavailable
from orchestrator.pipeline.builds import find_build, jenkins_build_key, recorded_build, records
from orchestrator.resources.jenkins import Build, Jenkins
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings
from orchestrator_tests.support.instances import new_instance
from orchestrator_tests.support.jenkins_model import Job, Model
from orchestrator_tests.support.sensor_daemon import Daemon

SHORT = RetryPolicy(total_seconds=0.1, connect_seconds=5, answer_seconds=10, first_pause_seconds=0.02)
EVIL = "https://evil.example/churn.git"

Metadata = dict[str, Any]


@pytest.fixture
def jenkins_away(settings: JenkinsSettings) -> Iterator[Jenkins]:
    with Jenkins(settings.model_copy(update={"url": "http://127.0.0.1:1/"}), policy=SHORT) as nowhere:
        yield nowhere


def report(instance: dg.DagsterInstance, partition: str, metadata: Metadata, *, pipeline: str = "churn") -> None:
    """As `/report_asset_materialization/churn/jenkins_build` does for whoever asks."""
    event = dg.AssetMaterialization(jenkins_build_key(pipeline), partition=partition, metadata=metadata)
    instance.report_runless_asset_event(event)


def forged(number: int = 4242, **changed: Any) -> Metadata:
    build = Build(number, 1, "SUCCESS", "team/churn", 1, "http://jenkins.example.com/", "e" * 40, "main", EVIL)
    return {"build": dg.MetadataValue.json(build.to_json() | changed)}


def metadata_of(instance: dg.DagsterInstance, partition: str, *, pipeline: str = "churn") -> Metadata:
    """Of the latest record, as anybody can read it in the UI."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(jenkins_build_key(pipeline), asset_partitions=[partition]), limit=1
    ).records
    event = records[0].asset_materialization
    assert event is not None
    return dict(event.metadata)


def test_a_forged_build_that_jenkins_does_not_know_is_refused(
    daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    daemon.instance.add_dynamic_partitions("churn_builds", ["4242"])
    report(daemon.instance, "4242", forged())
    assert recorded_build(daemon.instance, "churn", "4242") is None
    with pytest.raises(BuildUnusable, match="1 record was refused, because this installation's sensor did not sign"):
        find_build(jenkins, daemon.instance, "churn", "4242", settings)


def test_a_forged_build_is_refused_while_jenkins_is_away(
    daemon: Daemon, jenkins_away: Jenkins, settings: JenkinsSettings
) -> None:
    for _ in range(2):
        report(daemon.instance, "4242", forged())
    with pytest.raises(JenkinsUnavailable, match="2 records were refused, because"):
        find_build(jenkins_away, daemon.instance, "churn", "4242", settings, outage=SHORT)


@pytest.mark.parametrize("posts", [1, 10, 25, 41])
def test_forged_posts_do_not_hide_the_true_record(
    model: Model,
    daemon: Daemon,
    jenkins: Jenkins,
    settings: JenkinsSettings,
    posts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "PAGE_OF_RECORDS", 10)
    monkeypatch.setattr(records, "MOST_PAGES", 2)
    build = model.add()
    daemon.tick()
    signature = metadata_of(daemon.instance, "1")["signature"]
    for _ in range(posts):
        report(daemon.instance, "1", {**forged(1), "signature": signature})
    assert recorded_build(daemon.instance, "churn", "1") == build
    model.delete(build)
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == build


CHANGES: list[Metadata] = [
    {"repository": EVIL},
    {"commit": "e" * 40},
    {"branch": "evil"},
    {"parameters": {"alpha": "9"}},
    {"job": "team/other"},
    {"number": 2},
    {"number": 1.0},
    {"number": True},
    {"timestamp": 7},
    {"result": "UNSTABLE"},
    {"url": "http://evil.example/"},
    {"change_request": True},
    {"change_request": 0},
    {"doubt": "x"},
    {"more": 1},
]


@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_a_true_record_that_was_changed_is_not_believed(
    model: Model, daemon: Daemon, changed: Metadata, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    build = model.add()
    daemon.tick()
    true = metadata_of(daemon.instance, "1")
    report(daemon.instance, "1", {**true, "build": dg.MetadataValue.json({**true["build"].value, **changed})})
    assert recorded_build(daemon.instance, "churn", "1") == build
    model.delete(build)
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == build


def test_a_record_without_one_of_its_fields_is_not_believed(model: Model, daemon: Daemon) -> None:
    build = model.add()
    daemon.tick()
    true = metadata_of(daemon.instance, "1")
    for field in build.to_json():
        rest = {name: value for name, value in true["build"].value.items() if name != field}
        report(daemon.instance, "1", {**true, "build": dg.MetadataValue.json(rest)})
    assert recorded_build(daemon.instance, "churn", "1") == build


@pytest.mark.parametrize(
    "signature",
    [
        None,
        dg.MetadataValue.text("00" * 32),
        dg.MetadataValue.json({}),
        dg.MetadataValue.json([]),
        dg.MetadataValue.json({"recorded_at": 1, "hmac": ""}),
        dg.MetadataValue.json({"recorded_at": 2**70, "hmac": "00" * 32}),
        dg.MetadataValue.json({"recorded_at": True, "hmac": "00" * 32}),
        dg.MetadataValue.json({"recorded_at": 1, "hmac": "\ufffd\u00e9"}),
        dg.MetadataValue.json({"recorded_at": "1", "hmac": None}),
    ],
)
def test_no_odd_signature_passes(daemon: Daemon, signature: dg.MetadataValue | None) -> None:
    report(daemon.instance, "4242", {**forged(), **({"signature": signature} if signature else {})})
    assert recorded_build(daemon.instance, "churn", "4242") is None


def test_a_signature_says_when_it_was_made_and_that_cannot_be_changed(model: Model, daemon: Daemon) -> None:
    model.add()
    daemon.tick()
    model.jobs["team/churn"] = Job()
    build = model.add()
    model.add("FAILURE")
    daemon.tick()
    true = metadata_of(daemon.instance, "1")
    later = true["signature"].value | {"recorded_at": true["signature"].value["recorded_at"] + 10**9}
    report(daemon.instance, "1", {**true, "signature": dg.MetadataValue.json(later)})
    assert recorded_build(daemon.instance, "churn", "1") == build


def test_an_earlier_record_of_the_partition_that_is_reported_again_is_not_the_latest(
    model: Model, daemon: Daemon, jenkins_away: Jenkins, settings: JenkinsSettings
) -> None:
    model.add()
    daemon.tick()
    earlier = metadata_of(daemon.instance, "1")
    model.jobs["team/churn"] = Job()
    build = model.add()
    model.add("FAILURE")
    daemon.tick()
    for _ in range(3):
        report(daemon.instance, "1", earlier)
    assert recorded_build(daemon.instance, "churn", "1") == build
    assert find_build(jenkins_away, daemon.instance, "churn", "1", settings) == build


@pytest.mark.parametrize(
    ("partition", "pipeline"), [("2", "churn"), ("4242", "churn"), ("main#1", "churn"), ("1", "x")]
)
def test_a_record_of_another_partition_or_pipeline_is_not_believed(
    model: Model, daemon: Daemon, partition: str, pipeline: str
) -> None:
    model.add()
    daemon.tick()
    report(daemon.instance, partition, metadata_of(daemon.instance, "1"), pipeline=pipeline)
    assert recorded_build(daemon.instance, pipeline, partition) is None


def test_a_record_of_another_installation_is_not_believed(model: Model, environment: dict[str, str]) -> None:
    model.add()
    with new_instance() as theirs, new_instance() as ours:
        Daemon(theirs, environment).tick()
        Daemon(ours, environment)
        report(ours, "1", metadata_of(theirs, "1"))
        assert recorded_build(theirs, "churn", "1") is not None
        assert recorded_build(ours, "churn", "1") is None


@pytest.mark.parametrize(
    "partition",
    ["", "0", "01", "-1", "+1", "1.0", "\u0661", "1 ", "#1", "..#1", ".#1", "x#", "9" * 5000, "a\nb#1", "2147483648"],
)
def test_a_forged_partition_names_no_build(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings, partition: str
) -> None:
    model.add()
    requests = model.requests
    report(daemon.instance, partition, forged(1))
    with pytest.raises(BuildUnusable, match="names no build"):
        find_build(jenkins, daemon.instance, "churn", partition, settings)
    assert model.requests == requests


@pytest.mark.parametrize("partition", ["evil#1", "../other#1", "%2e%2e#1", "main/../../other#1"])
def test_a_forged_partition_leads_to_no_job_but_the_pipelines_own(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings, partition: str
) -> None:
    model.add()
    model.jobs["team/other"] = Job()
    model.add(job="team/other")
    report(daemon.instance, partition, forged(1))
    with pytest.raises(BuildUnusable, match="Jenkins has no build"):
        find_build(jenkins, daemon.instance, "churn", partition, settings)


def test_what_an_earlier_version_recorded_is_found_in_jenkins_or_refused(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    kept, gone = model.add(), model.add()
    for build in (kept, gone):
        report(daemon.instance, str(build.number), {"build": dg.MetadataValue.json(build.to_json())})
    model.delete(gone)
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == kept
    with pytest.raises(BuildUnusable, match="an earlier version wrote them, or somebody else"):
        find_build(jenkins, daemon.instance, "churn", "2", settings)


def unsigned(build: Build) -> Metadata:
    return {"build": dg.MetadataValue.json(build.to_json())}


def other_repository(build: Build) -> Metadata:
    return {"build": dg.MetadataValue.json(replace(build, repository=EVIL).to_json())}


@pytest.mark.parametrize("reported", [unsigned, other_repository])
def test_the_sensor_records_anew_what_it_did_not_sign(
    model: Model, daemon: Daemon, reported: Callable[[Build], Metadata]
) -> None:
    build = model.add()
    report(daemon.instance, "1", reported(build))
    daemon.tick()
    assert recorded_build(daemon.instance, "churn", "1") == build
    events = daemon.events()
    daemon.cursor = None
    daemon.tick()
    assert daemon.events() == events


def test_a_cursor_that_somebody_edits_gives_no_build_a_signature(model: Model, daemon: Daemon) -> None:
    model.add("FAILURE")
    planted = Build(7, model.now + 1, "SUCCESS", "team/churn", 1, "http://j/", "e" * 40, "main", EVIL).to_json()
    daemon.cursor = json.dumps({"job": "team/churn", "searching": True, "first": planted})
    daemon.tick()
    daemon.tick()
    assert recorded_build(daemon.instance, "churn", "7") is None
    assert daemon.seen_run_keys == set()
