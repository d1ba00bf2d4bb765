"""The MLflow client, against a real MLflow server."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowNotFound, MlflowRejected
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow, MlflowResource, Run
from orchestrator.resources.mlflow.history import MOST_BUCKETS
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import ANSWER_LOST, HUNG_UP, FaultyProxy
from orchestrator_tests.support.mlflow_client import client, post
from orchestrator_tests.support.waiting import until


def log_metrics(server: MlflowServer, run: Run, key: str, values: Sequence[float | str]) -> None:
    metrics = [{"key": key, "value": value, "step": step, "timestamp": step} for step, value in enumerate(values)]
    for begin in range(0, len(metrics), 1000):  # MLflow takes no more at once
        post(server.url, "runs/log-batch", run_id=run.id, metrics=metrics[begin : begin + 1000])


@pytest.fixture(scope="module")
def experiment(mlflow_server: MlflowServer) -> str:
    return mlflow_server.experiment("client tests")


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MlflowServer) -> Iterator[Mlflow]:
    with client(mlflow_server.url) as connected:
        yield connected


@pytest.fixture
def run(mlflow: Mlflow, experiment: str) -> Run:
    return mlflow.create_run(experiment, name="churn 12", tags={"jenkins.build": "12", "test": uuid4().hex})


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(mlflow_server.url) as running:
        yield running


class TestExperiments:
    def test_an_experiment_is_read_by_its_id(self, mlflow: Mlflow, experiment: str) -> None:
        assert mlflow.experiment(experiment).name == "client tests"

    @pytest.mark.parametrize("wrong", ["7777", "not a number"])
    def test_a_missing_experiment_is_named_with_the_setting_to_change(self, mlflow: Mlflow, wrong: str) -> None:
        with pytest.raises(MlflowNotFound) as error:
            mlflow.experiment(wrong)
        assert str(error.value) == (
            f"no experiment with ID {wrong} on {mlflow.uri}: set MLFLOW_EXPERIMENT_ID or create it"
        )

    def test_a_name_instead_of_an_id_is_answered_with_the_id(self, mlflow: Mlflow, experiment: str) -> None:
        with pytest.raises(MlflowNotFound, match=f"is the name .* set MLFLOW_EXPERIMENT_ID={experiment}$"):
            mlflow.experiment("client tests")

    def test_a_deleted_experiment_is_not_trained_into(self, mlflow: Mlflow, mlflow_server: MlflowServer) -> None:
        deleted = mlflow_server.experiment("to be deleted")
        post(mlflow_server.url, "experiments/delete", experiment_id=deleted)
        with pytest.raises(MlflowNotFound, match=r"'to be deleted'.* is deleted: set MLFLOW_EXPERIMENT_ID"):
            mlflow.experiment(deleted)
        with pytest.raises(MlflowNotFound, match="no experiment with ID to be deleted"):
            mlflow.experiment("to be deleted")


class TestRuns:
    def test_a_new_run_is_running_and_carries_name_and_tags(self, mlflow: Mlflow, run: Run) -> None:
        read = mlflow.run(run.id)
        assert (read.status, read.name, read.tags["jenkins.build"], read.ended) == ("RUNNING", "churn 12", "12", False)
        assert read.start_time is not None
        assert datetime.now(UTC) - read.start_time < timedelta(minutes=1)
        assert read.end_time is None

    def test_its_page_is_where_mlflow_shows_it(self, mlflow: Mlflow, run: Run) -> None:
        assert mlflow.run_url(run) == f"{mlflow.uri}/#/experiments/{run.experiment_id}/runs/{run.id}"

    def test_a_finished_run_says_when_and_why(self, mlflow: Mlflow, run: Run) -> None:
        ended = mlflow.finish(run.id, "FAILED", reason="the training exited with 1")
        assert (ended.status, ended.ended) == ("FAILED", True)
        assert ended.end_time is not None
        assert ended.tags["orchestrator.reason"] == "the training exited with 1"

    def test_many_and_long_tags_and_parameters_are_kept_as_far_as_mlflow_can(self, mlflow: Mlflow, run: Run) -> None:
        mlflow.set_tags(run.id, {f"tag{number}": "é" * 4000 for number in range(120)})
        mlflow.log_params(run.id, {f"param{number}": str(number) for number in range(120)})
        read = mlflow.run(run.id)
        assert read.tags["tag119"] == "é" * 2500
        assert read.params["param119"] == "119"

    def test_a_parameter_cannot_be_changed(self, mlflow: Mlflow, run: Run) -> None:
        mlflow.log_params(run.id, {"alpha": "1"})
        with pytest.raises(MlflowRejected, match="alpha"):
            mlflow.log_params(run.id, {"alpha": "2"})

    def test_an_unknown_run_is_not_found(self, mlflow: Mlflow) -> None:
        with pytest.raises(MlflowNotFound, match=f"no run with ID abc on {mlflow.uri}"):
            mlflow.run("abc")

    def test_a_deleted_run_is_neither_read_nor_found(
        self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run
    ) -> None:
        post(mlflow_server.url, "runs/delete", run_id=run.id)
        with pytest.raises(MlflowNotFound, match="is deleted"):
            mlflow.run(run.id)
        with pytest.raises(MlflowRejected):
            mlflow.set_tags(run.id, {"more": "tags"})
        assert mlflow.find_run(run.experiment_id, tags={"test": run.tags["test"]}) is None

    def test_a_run_in_a_missing_experiment_cannot_be_created(self, mlflow: Mlflow) -> None:
        with pytest.raises(MlflowNotFound, match="7777"):
            mlflow.create_run("7777", name="nowhere", tags={})


class TestSearch:
    def test_the_newest_run_with_all_the_tags_is_found(self, mlflow: Mlflow, experiment: str) -> None:
        tags = {"jenkins.job": "team/churn", "test": uuid4().hex}
        older = mlflow.create_run(experiment, name="older", tags=tags)
        until(lambda: older.start_time is not None and datetime.now(UTC) > older.start_time + timedelta(milliseconds=2))
        newer = mlflow.create_run(experiment, name="newer", tags=tags)
        mlflow.create_run(experiment, name="other", tags={**tags, "test": "other"})
        assert mlflow.find_run(experiment, tags=tags) == newer
        assert mlflow.find_run(experiment, tags={**tags, "jenkins.job": "team/Churn"}) is None

    def test_only_runs_of_these_statuses_are_found(self, mlflow: Mlflow, experiment: str) -> None:
        tags = {"test": uuid4().hex}
        done = mlflow.create_run(experiment, name="done", tags=tags)
        mlflow.finish(done.id, "FINISHED")
        open_run = mlflow.create_run(experiment, name="open", tags=tags)
        found = mlflow.find_run(experiment, tags=tags, statuses=["FINISHED"])
        assert found is not None
        assert found.id == done.id
        both = {each.id for each in mlflow.find_runs(experiment, tags=tags, statuses=["FINISHED", "RUNNING"])}
        assert both == {done.id, open_run.id}
        assert mlflow.find_run(experiment, tags=tags, statuses=["FAILED", "KILLED"]) is None

    def test_all_pages_are_searched(self, mlflow: Mlflow, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("orchestrator.resources.mlflow.search.RUNS_PER_PAGE", 2)
        tags = {"test": uuid4().hex}
        made = {mlflow.create_run(experiment, name=str(number), tags=tags).id for number in range(5)}
        assert {each.id for each in mlflow.find_runs(experiment, tags=tags)} == made

    def test_what_began_since_a_moment_is_found_in_all_experiments_deleted_or_not(
        self, mlflow_server: MlflowServer, mlflow: Mlflow, experiment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.resources.mlflow.client.EXPERIMENTS_PER_REQUEST", 1)
        other = mlflow_server.experiment(f"another experiment {uuid4().hex}")
        tags = {"test": uuid4().hex}
        made = [mlflow.create_run(each, name="spent", tags=tags) for each in (experiment, other)]
        mlflow.create_run(other, name="theirs", tags={"test": "other"})
        post(mlflow_server.url, "runs/delete", run_id=made[1].id)
        now = datetime.now(UTC)
        found = mlflow.runs_since(now - timedelta(hours=1), tags=tags)
        assert {run.id for run in found} == {run.id for run in made}
        assert mlflow.runs_since(now + timedelta(hours=1), tags=tags) == []

    @given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_in_a_tag_is_found_again(self, mlflow: Mlflow, experiment: str, value: str) -> None:
        tags = {"jenkins.job": value, "test": uuid4().hex}
        made = mlflow.create_run(experiment, name="any", tags=tags)
        assert [each.id for each in mlflow.find_runs(experiment, tags=tags)] == [made.id]
        assert mlflow.find_run(experiment, tags={**tags, "jenkins.job": f"{value}'"}) is None


class TestMetrics:
    def test_a_run_tells_the_last_value_and_step_of_each_metric(
        self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run
    ) -> None:
        log_metrics(mlflow_server, run, "loss", [3, 2, 1.5])
        log_metrics(mlflow_server, run, "broken", ["NaN"])
        read = mlflow.run(run.id)
        assert read.metrics["loss"] == 1.5
        assert read.latest["loss"].step == 2
        assert math.isnan(read.metrics["broken"])

    def test_a_history_comes_whole_and_in_order(
        self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.resources.mlflow.client.POINTS_PER_PAGE", 40)
        log_metrics(mlflow_server, run, "loss", [float(100 - step) for step in range(100)])
        history = mlflow.metric_history(run.id, "loss")
        assert [point.step for point in history] == list(range(100))
        assert history[10].value == 90
        assert len(mlflow.metric_history(run.id, "loss", limit=50)) == 80

    def test_a_long_history_is_thinned_out_and_keeps_its_extremes(
        self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.resources.mlflow.client.POINTS_PER_PAGE", 700)
        values = [math.sin(step / 100) for step in range(3000)]
        values[1234], values[2345] = 9.0, -9.0
        log_metrics(mlflow_server, run, "loss", values)
        history = mlflow.metric_history(run.id, "loss")
        assert len(history) <= 4 * MOST_BUCKETS
        assert {0, 1234, 2345, 2999} <= {point.step for point in history}
        assert [point.step for point in history] == sorted(point.step for point in history)
        assert all(point.value == pytest.approx(values[point.step]) for point in history)

    def test_a_history_that_takes_too_long_is_left_with_a_warning(
        self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        log_metrics(mlflow_server, run, "loss", [1, 2, 3])
        assert mlflow.metric_history(run.id, "loss", until=time.monotonic()) == []
        assert "Left out the end of the history of metric loss" in caplog.text

    def test_a_file_becomes_an_artifact(
        self, proxy: FaultyProxy, mlflow_server: MlflowServer, run: Run, tmp_path: Path
    ) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"0123456789" * 100_000)
        proxy.faults.append(ANSWER_LOST)
        with client(proxy.url) as shaky, file.open("rb") as opened:
            opened.read(7)
            shaky.log_artifact(run.id, "orchestrator/out put.log.gz", opened)
        place = f"{mlflow_server.url}/api/2.0/mlflow-artifacts/artifacts/{run.experiment_id}/{run.id}/artifacts"
        assert requests.get(f"{place}/orchestrator/out put.log.gz", timeout=30).content == file.read_bytes()

    def test_an_unknown_metric_has_no_history(self, mlflow: Mlflow, run: Run) -> None:
        assert mlflow.metric_history(run.id, "nothing") == []


class TestLostAnswers:
    def test_a_run_whose_creation_was_not_answered_is_not_created_twice(
        self, proxy: FaultyProxy, mlflow: Mlflow, experiment: str
    ) -> None:
        tags = {"jenkins.job": 'it\'s "quoted"', "test": uuid4().hex}
        proxy.faults.extend([ANSWER_LOST, HUNG_UP])
        with client(proxy.url) as shaky:
            made = shaky.create_run(experiment, name="once", tags=tags)
        assert [each.id for each in mlflow.find_runs(experiment, tags=tags)] == [made.id]
        assert proxy.requests_for("runs/create") == 1

    def test_a_run_whose_creation_did_not_arrive_is_created(
        self, proxy: FaultyProxy, mlflow: Mlflow, experiment: str
    ) -> None:
        tags = {"test": uuid4().hex}
        mlflow.create_run(experiment, name="an earlier attempt's", tags=tags)
        proxy.faults.append(HUNG_UP)
        with client(proxy.url) as shaky:
            shaky.create_run(experiment, name="mine", tags=tags)
        assert len(list(mlflow.find_runs(experiment, tags=tags))) == 2


def test_the_resource_connects_with_the_settings_of_a_pipeline() -> None:
    values = {"MLFLOW_TRACKING_URI": "http://mlflow.example.com/", "MLFLOW_EXPERIMENT_ID": "1"}
    with MlflowResource().connect(SettingsSource(values=values, lookup=lambda _: None).read(MlflowSettings)) as mlflow:
        assert (mlflow.uri, mlflow.policy) == ("http://mlflow.example.com", retry.MLFLOW)
