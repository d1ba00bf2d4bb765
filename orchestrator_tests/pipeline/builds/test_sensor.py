"""The sensor in Dagster: partitions, records and runs of builds, with a real instance and real HTTP."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.errors import (
    BuildUnusable,
    JenkinsNotFound,
    JenkinsRefused,
    JenkinsUnavailable,
    SettingsError,
)
from orchestrator.pipeline.builds import (
    find_build,
    partition_key,
    recorded_build,
)
from orchestrator.pipeline.builds.lookup import _job_and_number
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.resources import retry
from orchestrator.resources.jenkins import Build, Jenkins
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings
from orchestrator_sandbox.proxy import HTML_PAGE, HUNG_UP, FaultyProxy
from orchestrator_tests.support.jenkins_model import COMMIT, REMOTE, Job, Model
from orchestrator_tests.support.sensor_daemon import Daemon

SHORT = RetryPolicy(total_seconds=0.1, connect_seconds=5, answer_seconds=10, first_pause_seconds=0.02)


def test_the_past_is_registered_and_the_newest_success_runs(model: Model, daemon: Daemon) -> None:
    for result in ("SUCCESS", "FAILURE", "SUCCESS"):
        model.add(result)
    assert daemon.tick() == ["3"]
    assert daemon.instance.get_dynamic_partitions("churn_builds") == ["1", "3"]
    assert daemon.events() == 2


def test_a_run_is_known_by_pipeline_partition_and_timestamp(model: Model, daemon: Daemon) -> None:
    build = model.add()
    (request,) = daemon.evaluate().run_requests or []
    assert request.run_key == f"churn:1:{build.timestamp}"
    assert request.partition_key == "1"
    assert request.tags["jenkins/job"] == "team/churn"
    assert request.tags["jenkins/build"] == "1"
    assert request.tags["jenkins/commit"] == COMMIT
    assert request.tags["dagster/partition"] == "1"


def test_the_record_of_a_build_reads_back(model: Model, daemon: Daemon) -> None:
    build = model.add()
    daemon.tick()
    assert recorded_build(daemon.instance, "churn", "1") == build
    assert recorded_build(daemon.instance, "churn", "2") is None
    event = daemon.instance.get_latest_materialization_event(dg.AssetKey(["churn", "jenkins_build"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["url"] == dg.MetadataValue.url(build.url)
    assert metadata["commit"].value == COMMIT
    assert metadata["repository"].value == REMOTE
    assert metadata["branch"].value == "main"
    assert metadata["result"].value == "SUCCESS"


def test_a_materialisation_reported_by_hand_does_not_hide_the_record(model: Model, daemon: Daemon) -> None:
    build = model.add()
    daemon.tick()
    by_hand = dg.AssetMaterialization(["churn", "jenkins_build"], partition="1")
    daemon.instance.report_runless_asset_event(by_hand)
    assert recorded_build(daemon.instance, "churn", "1") == build


def test_a_daemon_that_dies_before_it_keeps_the_cursor_records_and_launches_nothing_twice(
    model: Model, daemon: Daemon
) -> None:
    model.add()
    daemon.tick()
    model.add()
    assert daemon.tick(dies=True) == ["2"]
    assert daemon.tick() == []
    assert daemon.events() == 2


def test_a_cursor_that_was_reset_trains_nothing_twice(model: Model, daemon: Daemon) -> None:
    model.add()
    daemon.tick()
    daemon.cursor = None
    assert daemon.tick() == []
    assert daemon.events() == 1


def test_the_numbers_of_a_re_created_job_are_recorded_anew(model: Model, daemon: Daemon) -> None:
    model.add()
    daemon.tick()
    model.jobs["team/churn"] = Job()
    build = model.add()
    model.add("FAILURE")
    assert daemon.tick() == ["1"]
    assert recorded_build(daemon.instance, "churn", "1") == build


def test_a_tick_without_news_says_what_it_saw(model: Model, daemon: Daemon) -> None:
    daemon.tick()
    model.start()
    data = daemon.evaluate()
    assert data.skip_message == "no new build; 1 running: team/churn #1"


def test_a_tick_says_what_the_job_is_and_which_branches_are_trained(model: Model, daemon: Daemon) -> None:
    model.multibranch = True
    model.jobs = {"team/churn/main": Job(primary=True)}
    daemon.tick()
    for branch in ("PR-1", "PR-2", "feature%2Fx"):
        model.add(job=f"team/churn/{branch}")
    data = daemon.evaluate()
    assert data.skip_message == (
        "3 new builds registered, not trained; multibranch project, training main (the primary branch, as Jenkins "
        "marks it); not trained: 2 change requests and 1 other branch"
    )
    assert daemon.tick() == []
    assert set(daemon.instance.get_dynamic_partitions("churn_builds")) == {"PR-1#1", "PR-2#1", "feature/x#1"}
    assert daemon.events() == 3


def test_the_setting_names_the_branches_to_train(model: Model, daemon: Daemon) -> None:
    model.multibranch = True
    model.jobs = {}
    daemon.environment["TRAIN_BRANCHES"] = "release/*, PR-2"
    daemon.tick()
    for branch in ("PR-1", "PR-2", "main", "release%2F1"):
        model.add(job=f"team/churn/{branch}")
    assert daemon.tick() == ["PR-2#1", "release/1#1"]


def test_without_a_primary_branch_the_tick_names_the_setting(model: Model, daemon: Daemon) -> None:
    model.multibranch = True
    model.jobs = {"team/churn/develop": Job()}
    model.add(job="team/churn/develop")
    message = daemon.evaluate().skip_message or ""
    assert "nothing is trained" in message
    assert "set TRAIN_BRANCHES" in message
    assert daemon.tick() == []
    assert daemon.instance.get_dynamic_partitions("churn_builds") == ["develop#1"]


def test_a_record_that_is_none_of_ours_hides_no_other(model: Model, daemon: Daemon) -> None:
    build = model.add()
    daemon.tick()
    for content in ({"number": "x"}, [1], build.to_json() | {"number": 2**70, "job": 5}):
        metadata = {"build": dg.MetadataValue.json(content)}
        by_hand = dg.AssetMaterialization(["churn", "jenkins_build"], partition="1", metadata=metadata)
        daemon.instance.report_runless_asset_event(by_hand)
    assert recorded_build(daemon.instance, "churn", "1") == build
    daemon.cursor = None
    assert daemon.tick() == []


def test_a_build_full_of_odd_text_is_registered_and_so_are_the_others(model: Model, daemon: Daemon) -> None:
    daemon.tick()
    odd = model.add()
    text = "\ud800\x00\x1b[2J" + "x" * 100_000
    model.jobs[odd.job].builds[odd.number] = replace(
        odd, branch=text, repository=f"https://{text}", parameters={text: text}
    )
    model.add()
    assert daemon.tick() == ["1", "2"]
    assert daemon.instance.get_dynamic_partitions("churn_builds") == ["1", "2"]
    assert recorded_build(daemon.instance, "churn", "1") is not None


def test_a_long_history_is_registered_over_several_ticks(
    model: Model, instance: dg.DagsterInstance, environment: dict[str, str]
) -> None:
    for _ in range(45):
        model.add()
    daemon = Daemon(instance, environment, limits=Limits(page=10, builds=20))
    assert daemon.tick() == ["45"]
    skipped = daemon.evaluate()
    assert skipped.skip_message == "18 past builds registered; the next tick reads on in the history"
    daemon.tick()
    daemon.tick()
    assert len(instance.get_dynamic_partitions("churn_builds")) == 45


def test_a_partition_that_dagster_cannot_name_is_left_out(
    instance: dg.DagsterInstance, environment: dict[str, str], model: Model
) -> None:
    model.multibranch = True
    model.jobs = {}
    daemon = Daemon(instance, environment | {"TRAIN_BRANCHES": "*"})
    daemon.tick()
    model.add(job="team/churn/odd...name")
    model.add(job="team/churn/feature%2Fx")
    assert daemon.tick() == ["feature/x#1"]


def test_a_missing_setting_fails_the_tick(daemon: Daemon) -> None:
    del daemon.environment["JENKINS_TOKEN"]
    with pytest.raises(Exception, match="JENKINS_TOKEN is not set") as raised:
        daemon.evaluate()
    assert isinstance(raised.value.__cause__ or raised.value, SettingsError)


def test_a_refusal_fails_the_tick(daemon: Daemon) -> None:
    daemon.environment["JENKINS_TOKEN"] = "wr0ng"
    with pytest.raises(Exception, match=r"401 from .*rejected") as raised:
        daemon.evaluate()
    assert "wr0ng" not in str(raised.value)


def test_a_cursor_that_is_not_ours_is_named(daemon: Daemon) -> None:
    daemon.cursor = "42"
    with pytest.raises(Exception, match="cursor of sensor churn_jenkins_sensor cannot be read"):
        daemon.evaluate()


def test_unstable_builds_run_when_the_setting_lets_them(model: Model, daemon: Daemon) -> None:
    daemon.environment["TRAIN_UNSTABLE"] = "true"
    model.add("UNSTABLE")
    assert daemon.tick() == ["1"]


@pytest.mark.parametrize(
    ("job", "key"),
    [("team/churn", "12"), ("team/churn/main", "main#12"), ("team/churn/feature%2Fx%2523", "feature/x%23#12")],
)
def test_partitions_are_named_after_branch_and_number(job: str, key: str) -> None:
    assert partition_key(Build(12, 1, "SUCCESS", job, 1, ""), "team/churn") == key


def test_a_build_is_found_in_jenkins(
    model: Model, jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    build = model.add()
    assert find_build(jenkins, instance, "churn", "1", settings) == build


def test_a_build_of_a_branch_is_found_without_a_record(
    model: Model, jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    model.multibranch = True
    build = model.add(job="team/churn/feature%2Fx%23")
    assert find_build(jenkins, instance, "churn", "feature/x##1", settings) == build


def test_a_build_that_jenkins_deleted_is_found_in_the_record(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    build = model.add()
    daemon.tick()
    model.delete(build)
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == build


def test_a_build_is_found_in_the_record_while_jenkins_is_away(
    model: Model, daemon: Daemon, settings: JenkinsSettings
) -> None:
    build = model.add()
    daemon.tick()
    with Jenkins(at(settings, "http://127.0.0.1:1/"), policy=SHORT) as nowhere:
        assert find_build(nowhere, daemon.instance, "churn", "1", settings) == build
        with pytest.raises(JenkinsUnavailable):
            find_build(nowhere, daemon.instance, "churn", "2", settings, outage=SHORT)


def test_a_build_is_found_in_the_record_while_a_proxy_shows_a_page_instead(
    model: Model, daemon: Daemon, settings: JenkinsSettings
) -> None:
    build = model.add()
    daemon.tick()
    with FaultyProxy() as proxy, proxy.faulty(HTML_PAGE), Jenkins(at(settings, proxy.url), policy=SHORT) as page:
        assert find_build(page, daemon.instance, "churn", "1", settings) == build
        with pytest.raises(JenkinsUnavailable, match="a web page"):
            find_build(page, daemon.instance, "churn", "2", settings, outage=SHORT)


def test_a_run_without_a_record_waits_for_a_jenkins_that_is_away(
    model: Model, daemon: Daemon, settings: JenkinsSettings
) -> None:
    build = model.add()
    outage = replace(retry.JENKINS_FOR_A_RUN, first_pause_seconds=0.01, longest_pause_seconds=0.05)
    with FaultyProxy(settings.url) as proxy, Jenkins(at(settings, proxy.url)) as asked:
        proxy.faults.extend([HUNG_UP] * 8)
        assert find_build(asked, daemon.instance, "churn", "1", settings, outage=outage) == build


def at(settings: JenkinsSettings, url: str) -> JenkinsSettings:
    return settings.model_copy(update={"url": url})


def test_a_number_that_belongs_to_another_build_by_now_means_the_recorded_one(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    build = model.add()
    daemon.tick()
    model.jobs["team/churn"] = Job()
    model.add("FAILURE")
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == build


def test_a_refused_token_is_not_hidden_by_the_record(model: Model, daemon: Daemon, settings: JenkinsSettings) -> None:
    model.add()
    daemon.tick()
    with Jenkins(settings.model_copy(update={"token": SecretStr("old")})) as refused, pytest.raises(JenkinsRefused):
        find_build(refused, daemon.instance, "churn", "1", settings)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("FAILURE", "ended as FAILURE, and only successful"),
        ("UNSTABLE", "set TRAIN_UNSTABLE=true"),
        (None, "still runs"),
    ],
)
def test_a_build_that_is_not_green_is_unusable(
    model: Model,
    jenkins: Jenkins,
    instance: dg.DagsterInstance,
    settings: JenkinsSettings,
    result: str | None,
    words: str,
) -> None:
    build = model.start()
    if result:
        model.finish(build, result)
    with pytest.raises(BuildUnusable, match=words):
        find_build(jenkins, instance, "churn", "1", settings)


def test_an_unstable_build_is_usable_where_the_setting_lets_it_pass(
    model: Model, jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    build = model.add("UNSTABLE")
    lenient = settings.model_copy(update={"train_unstable": True})
    assert find_build(jenkins, instance, "churn", "1", lenient) == build


def test_a_build_that_nobody_knows_is_unusable(
    jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    with pytest.raises(BuildUnusable, match="Jenkins has no build team/churn #9") as raised:
        find_build(jenkins, instance, "churn", "9", settings)
    assert isinstance(raised.value.__cause__, JenkinsNotFound)


def test_a_partition_that_names_no_build_is_unusable(
    jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    with pytest.raises(BuildUnusable, match="names no build"):
        find_build(jenkins, instance, "churn", "main", settings)


@given(partition=st.text() | st.text(st.sampled_from("ab./#%19?\\")).map("{}#1".format))
def test_any_partition_names_a_build_beneath_the_job_or_is_refused(partition: str) -> None:
    try:
        job, number = _job_and_number(partition, "team/churn")
    except BuildUnusable:
        return
    assert job == "team/churn" or (job.startswith("team/churn/") and job.count("/") == 2)
    assert not {".", ".."} & set(job.split("/"))
    assert partition_key(Build(number, 1, "SUCCESS", job, 1, ""), "team/churn") == partition


class TestKnownCommit:
    """A new branch begins with the commit of another one; both are trained, and the tick's log says so."""

    @pytest.fixture(autouse=True)
    def tick_log(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(dg.SensorEvaluationContext, "log", logging.getLogger("tick"))

    def lines(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [record.message for record in caplog.records if "has as well" in record.message]

    def run_of(self, daemon: Daemon, partition: str, **tags: str) -> None:
        run = dg.DagsterRun(
            job_name="churn_training",
            run_id=str(uuid.uuid4()),
            tags={"dagster/partition": partition, "jenkins/commit": COMMIT, **tags},
        )
        daemon.instance.add_run(run)

    @pytest.fixture
    def branches(self, model: Model, daemon: Daemon) -> Model:
        model.multibranch = True
        model.jobs = {"team/churn/main": Job(primary=True), "team/churn/feature%2Fx": Job()}
        daemon.environment["TRAIN_BRANCHES"] = "*"
        daemon.tick()
        return model

    def test_that_a_run_has(self, branches: Model, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
        self.run_of(daemon, "main#1")
        branches.add(job="team/churn/feature%2Fx")
        assert daemon.tick() == ["feature/x#1"]
        assert self.lines(caplog) == [
            f"Launched a run for build feature/x#1 of commit {COMMIT[:12]}, which build main#1 has as well: each "
            "build is trained, whatever its commit"
        ]

    def test_of_the_same_tick(self, branches: Model, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
        branches.add(job="team/churn/main")
        branches.add(job="team/churn/feature%2Fx")
        assert daemon.tick() == ["main#1", "feature/x#1"]
        assert len(self.lines(caplog)) == 1

    def test_not_its_own_nor_another_pipelines(
        self, branches: Model, daemon: Daemon, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.run_of(daemon, "main#1")
        branches.add(job="team/churn/main")
        assert daemon.tick() == ["main#1"]
        assert self.lines(caplog) == []
