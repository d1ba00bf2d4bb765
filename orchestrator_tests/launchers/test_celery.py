"""Runs on a real Celery worker, through a real Redis: launched, cancelled, lost, and left to others."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
from click.testing import CliRunner

from orchestrator.cli.worker import worker as worker_command
from orchestrator.launchers.celery import CeleryPolicy, WorkersRunLauncher, app_options
from orchestrator.operate import worker as worker_module
from orchestrator.operate.home import prepare_home
from orchestrator.settings.groups import LONGEST_MINUTES, LauncherSettings
from orchestrator_sandbox.processes.child import ChildProcess
from orchestrator_tests.support.celery_job import BEGUN, CLEANED, FORGED, GO, inheriting, leased, talking, waiting
from orchestrator_tests.support.celery_workers import PASSWORD, RedisServer, await_ready
from orchestrator_tests.support.certificate import certificate_in
from orchestrator_tests.support.dagster_internals import (
    DagsterUserCodeUnreachableError,
    LaunchRunContext,
    WorkerStatus,
    starting_event,
)
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

SLOTS = 3
RESULT_EXPIRES = 3
SHORT = CeleryPolicy(slots_known=timedelta(0))
WORKER = """
import sys
from orchestrator.operate.worker import work
from orchestrator.launchers.celery import CeleryPolicy
from datetime import timedelta
policy = CeleryPolicy(result_expires=timedelta(seconds=int(sys.argv[1])))
sys.exit(work(slots=int(sys.argv[2]), name=sys.argv[3], say=print, policy=policy))
"""


@dataclass
class Cluster:
    """One Redis, and one home of Dagster that all workers share."""

    redis: RedisServer
    home: Path
    instance: dg.DagsterInstance
    folder: Path

    @property
    def launcher(self) -> WorkersRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, WorkersRunLauncher)
        return launcher

    def worker(self, name: str, **settings: str) -> ChildProcess:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(PROJECT),
            "DAGSTER_HOME": str(self.home),
            "CELERY_BROKER_URL": self.redis.url,
            **settings,
        }
        return ChildProcess(
            [sys.executable, "-c", WORKER, str(RESULT_EXPIRES), str(SLOTS), name],
            name="the worker",
            log=self.home.parent / f"{name}.log",
            env=environment,
            cwd=self.home,
        )

    def launch(self, job: dg.JobDefinition = waiting) -> tuple[str, Path]:
        """Launch a run as Dagster's queue does; return its ID and its folder."""
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        config = {"ops": {job.nodes[0].name: {"config": {"folder": str(folder)}}}}
        run = self.instance.create_run_for_job(
            job, run_config=config, tags=job.tags, job_code_origin=dg.reconstructable(job).get_python_origin()
        )
        self.instance.report_dagster_event(starting_event(run), run_id=run.run_id)
        starting = self.run(run.run_id)
        self.launcher.launch_run(LaunchRunContext(dagster_run=starting, workspace=None))
        return run.run_id, folder

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def begun(self, job: dg.JobDefinition = waiting) -> tuple[str, Path]:
        run_id, folder = self.launch(job)
        until((folder / BEGUN).exists, seconds=120)
        return run_id, folder

    def health(self, run_id: str) -> WorkerStatus:
        return self.launcher.check_run_worker_health(self.run(run_id)).status

    def ended(self, run_id: str) -> str:
        until(lambda: self.run(run_id).is_finished, seconds=120)
        return self.run(run_id).status.value

    def state(self, run_id: str) -> str:
        return str(self.launcher.celery.AsyncResult(run_id).state)

    def process_of(self, run_id: str) -> psutil.Process:
        events = self.instance.all_logs(run_id)
        message = next(event.message for event in events if event.message.startswith("Started process for run"))
        return psutil.Process(int(message.rpartition("pid: ")[2].rstrip(").")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("celery")
    home = directory / "home"
    prepare_home(home)
    with RedisServer(directory / "redis") as redis, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", redis.url)
        patch.delenv("RUN_LAUNCHER", raising=False)
        (directory / "runs").mkdir()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            cluster = Cluster(redis, home, instance, directory / "runs")
            cluster.launcher._policy = SHORT
            yield cluster


@pytest.fixture(scope="module")
def worker(cluster: Cluster) -> Iterator[ChildProcess]:
    with cluster.worker("first") as worker:
        await_ready(worker)
        yield worker


def test_a_run_ends_well_on_a_worker_whose_command_line_holds_no_password(
    cluster: Cluster, worker: ChildProcess
) -> None:
    run_id, folder = cluster.begun()
    assert cluster.run(run_id).status == dg.DagsterRunStatus.STARTED
    assert cluster.health(run_id) == WorkerStatus.RUNNING
    assert cluster.launcher.slots() == SLOTS
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    assert cluster.process_of(run_id) in family
    assert os.getpgid(cluster.process_of(run_id).pid) != os.getpgid(worker.pid)  # Ctrl-C and `tini -g` signal a group
    assert [process for process in family if PASSWORD in " ".join(process.cmdline())] == []
    (folder / GO).touch()
    assert cluster.ended(run_id) == "SUCCESS"
    until(lambda: cluster.state(run_id) in ("SUCCESS", "PENDING"))
    assert cluster.launcher.terminate(run_id) is False
    assert PASSWORD not in worker.log.read_text()


def test_what_a_worker_works_by(cluster: Cluster, worker: ChildProcess) -> None:
    ((_, in_force),) = cluster.launcher.celery.control.inspect(timeout=60, limit=1).conf().items()
    assert in_force["task_acks_late"] is False
    assert in_force["worker_disable_prefetch"] is True
    assert (in_force["worker_prefetch_multiplier"], in_force["worker_max_tasks_per_child"]) == (1, 1)
    assert in_force["worker_cancel_long_running_tasks_on_connection_loss"] is False
    assert in_force["worker_redirect_stdouts"] is False
    assert 0 < in_force["worker_soft_shutdown_timeout"] < 10  # what `docker stop` gives
    assert PASSWORD not in str(in_force)


def test_a_run_finds_all_packages_imported_and_frozen_and_the_pipelines_not(
    cluster: Cluster, worker: ChildProcess
) -> None:
    run_id, folder = cluster.launch(inheriting)
    assert cluster.ended(run_id) == "SUCCESS"
    found = json.loads((folder / BEGUN).read_text())
    assert {name for name in worker_module.IMPORTED if importlib.util.find_spec(name)} <= set(found["modules"])
    assert "orchestrator.definitions" not in found["modules"]
    assert found["frozen"] > 100_000


def test_a_cancelled_run_cleans_up_and_is_cancelled(cluster: Cluster, worker: ChildProcess) -> None:
    run_id, folder = cluster.begun()
    assert cluster.launcher.terminate(run_id)
    assert cluster.ended(run_id) == "CANCELED"
    assert (folder / CLEANED).exists()


def test_a_run_that_waits_in_the_broker_is_cancelled_at_once_and_never_begins(
    cluster: Cluster, worker: ChildProcess
) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        run_id, folder = cluster.launch()
        assert cluster.health(run_id) == WorkerStatus.RUNNING  # not known yet, so it is starting
        assert cluster.launcher.terminate(run_id)
        assert cluster.run(run_id).status == dg.DagsterRunStatus.CANCELED
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    until(lambda: cluster.state(run_id) != "PENDING")
    assert not (folder / BEGUN).exists()
    assert cluster.run(run_id).status == dg.DagsterRunStatus.CANCELED


def test_a_process_that_is_killed_is_noticed(cluster: Cluster, worker: ChildProcess) -> None:
    run_id, _ = cluster.begun()
    cluster.process_of(run_id).kill()
    until(lambda: cluster.health(run_id) == WorkerStatus.FAILED)
    assert worker.alive()


def test_a_training_that_outlasts_what_redis_keeps_is_not_taken_for_dead(
    cluster: Cluster, worker: ChildProcess
) -> None:
    run_id, folder = cluster.begun(leased)
    other_id, other_folder = cluster.begun()
    for expired in (run_id, other_id):
        until(lambda expired=expired: cluster.state(expired) == "PENDING")  # type: ignore[misc]
    assert cluster.health(run_id) == WorkerStatus.RUNNING
    assert cluster.health(other_id) == WorkerStatus.RUNNING  # it has no lease, but is young
    cluster.launcher._policy = CeleryPolicy(young=timedelta(0))
    assert cluster.health(run_id) == WorkerStatus.RUNNING
    assert cluster.health(other_id) == WorkerStatus.UNKNOWN
    cluster.launcher._policy = SHORT
    for waiting_folder in (folder, other_folder):
        (waiting_folder / GO).touch()
    assert (cluster.ended(run_id), cluster.ended(other_id)) == ("SUCCESS", "SUCCESS")


def test_while_redis_is_away_runs_stay_queued_and_alive_and_later_go_on(cluster: Cluster, worker: ChildProcess) -> None:
    run_id, folder = cluster.begun()
    cluster.redis.stop()
    try:
        assert cluster.launcher.slots() == 0
        assert cluster.health(run_id) == WorkerStatus.RUNNING
        assert cluster.launcher.get_run_worker_debug_info(cluster.run(run_id)) is None
        with pytest.raises(DagsterUserCodeUnreachableError, match="the run stays in the queue: Error 111"):
            cluster.launch()
    finally:
        cluster.redis.start()
    until(lambda: cluster.launcher.slots() == SLOTS, seconds=120)
    assert cluster.health(run_id) == WorkerStatus.RUNNING
    (folder / GO).touch()
    assert cluster.ended(run_id) == "SUCCESS"


def test_a_cancel_while_redis_is_away_is_reported_for_the_run_to_notice(cluster: Cluster, worker: ChildProcess) -> None:
    run_id, folder = cluster.begun()
    cluster.redis.stop()
    try:
        assert cluster.launcher.terminate(run_id)
    finally:
        cluster.redis.start()
    assert cluster.run(run_id).status == dg.DagsterRunStatus.CANCELING
    (folder / GO).touch()
    until(lambda: cluster.launcher.slots() == SLOTS, seconds=120)


def test_a_worker_that_is_asked_to_end_leaves_its_runs_untouched_to_others(
    cluster: Cluster, worker: ChildProcess
) -> None:
    run_id, folder = cluster.begun()
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(60)  # the last test with this worker
    assert cluster.health(run_id) == WorkerStatus.FAILED
    assert not (folder / CLEANED).exists()
    assert cluster.run(run_id).status == dg.DagsterRunStatus.STARTED  # until Dagster looks, and retries


def test_with_json_logs_each_line_is_one_object_that_names_its_run_and_no_training_forges_one(cluster: Cluster) -> None:
    with cluster.worker("json", LOG_FORMAT="json") as worker:
        await_ready(worker)
        talked, _ = cluster.begun(talking)
        waits, _ = cluster.begun()
        assert cluster.ended(talked) == "FAILURE"
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait(60)
    entries = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert all(entry.keys() >= {"timestamp", "level", "logger", "event"} for entry in entries)
    runs = {entry["event"]: (entry["logger"], entry.get("run_id")) for entry in entries}
    assert runs["Epoch 1/3"] == runs[FORGED] == runs["a word of a library"] == ("output", talked)
    assert runs["Reconnected"] == ("paramiko", talked)
    assert runs["Training begins"][1] == talked
    assert "forged" not in runs
    assert any("no data" in entry.get("exception", "") and entry["run_id"] == talked for entry in entries)
    (ready,) = [logger for event, (logger, _) in runs.items() if event.endswith(" ready.")]
    assert ready.startswith("celery.")
    assert runs[f"Left run {waits} to another worker"] == ("orchestrator.launchers.leaving", waits)
    assert runs[f"Task execute_job[{waits}] received"] == ("celery.worker.strategy", waits)


@pytest.mark.parametrize(
    "query", ["ssl_ca_certs={cert}", "ssl_cert_reqs=required&ssl_ca_certs={cert}", "ssl_cert_reqs=none"]
)
def test_redis_over_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture, query: str) -> None:
    cert, key = certificate_in(tmp_path)
    with RedisServer(tmp_path / "redis", certificate=(cert, key)) as redis:
        url = f"{redis.url}?{query.format(cert=cert)}"
        launcher = WorkersRunLauncher(**app_options(LauncherSettings(broker=url)))  # type: ignore[arg-type]
        assert launcher.slots() == 0
        assert "no worker answers" in caplog.text  # Redis does
        assert launcher.celery.AsyncResult("unknown").state == "PENDING"


def test_a_redis_whose_certificate_nobody_knows_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path / "redis", certificate=certificate_in(tmp_path)) as redis:
        launcher = WorkersRunLauncher(**app_options(LauncherSettings(broker=redis.url)))  # type: ignore[arg-type]
        assert launcher.slots() == 0
        assert "certificate verify failed" in caplog.text


def test_every_option_is_set() -> None:
    options = app_options(LauncherSettings(broker="rediss://:x@host:6380/1"))  # type: ignore[arg-type]
    assert options["backend"] == options["broker"]
    config = options["config_source"]
    assert config["result_expires"] > timedelta(minutes=LONGEST_MINUTES)
    assert config["broker_use_ssl"] == config["redis_backend_use_ssl"]


def test_orchestrator_worker_takes_the_options_that_users_of_airflow_know(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(worker_module, "work", lambda **options: calls.append(options))
    for words in (
        [],
        ["--slots", "2", "--name", "a"],
        ["-c", "3", "-H", "b"],
        ["--concurrency=5", "--celery-hostname=c"],
    ):
        assert CliRunner().invoke(worker_command, words).exit_code == 0
    assert [(call["slots"], call["name"]) for call in calls] == [(4, None), (2, "a"), (3, "b"), (5, "c")]
    assert CliRunner().invoke(worker_command, ["--slots", "0"]).exit_code == 2
