"""Runs on machines with `orchestrator worker`: Celery carries whole runs there, through a Redis."""

from __future__ import annotations

import logging
import ssl
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import dagster as dg
from celery import Celery
from celery.exceptions import OperationalError
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.make_app import make_app
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from redis.exceptions import RedisError

from orchestrator import names
from orchestrator.settings.groups import LONGEST_MINUTES, LauncherSettings

QUEUE = "dagster"

AWAY = (OperationalError, RedisError, OSError)
"""What is raised when Redis does not answer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CeleryPolicy:
    """How patient we are.

    Attributes:
        result_expires: how long Redis knows what became of a run; longer than any training takes.
        young: how long a run may be under way before the broker must know it.
        slots_known: how long the workers' answer about their slots is believed.
        answer: how long workers may take for that answer.
        shutdown: what a worker that is asked to end leaves the runs on it, before it leaves them to others; less than
            the 10 s that `docker stop` gives.
    """

    result_expires: timedelta = timedelta(minutes=LONGEST_MINUTES, days=1)
    young: timedelta = timedelta(minutes=10)
    slots_known: timedelta = timedelta(seconds=4)
    answer: timedelta = timedelta(seconds=1)
    shutdown: timedelta = timedelta(seconds=3)


POLICY = CeleryPolicy()


def app_options(settings: LauncherSettings, policy: CeleryPolicy = POLICY) -> dict[str, Any]:
    """Arguments of the launcher: every option of Celery's that matters, the same in launcher, worker and Flower."""
    broker = settings.broker.get_secret_value() if settings.broker else ""
    backend = settings.backend.get_secret_value() if settings.backend else broker
    address = _address(broker)
    return {
        "broker": address,
        "backend": _address(backend),
        "include": [],
        "default_queue": QUEUE,
        "config_source": {
            # Else Celery takes CELERY_BROKER_URL as it stands in the environment.
            "broker_read_url": address,
            "broker_write_url": address,
            "accept_content": ["json"],
            "task_serializer": "json",
            "result_serializer": "json",
            # A worker that dies costs an attempt, which Dagster repeats, and the next attempt takes over what it left.
            # That the broker delivers it once more would bring nothing.
            "task_acks_late": False,
            "worker_disable_prefetch": True,
            "worker_prefetch_multiplier": 1,
            "broker_transport_options": {
                "visibility_timeout": 3600,
                "socket_connect_timeout": 5,
                "socket_keepalive": True,
                "max_retries": 1,
                "interval_start": 0,
                "interval_step": 0.2,
                "interval_max": 0.5,
            },
            **({"broker_use_ssl": _tls(broker)} if broker.startswith("rediss:") else {}),
            **({"redis_backend_use_ssl": _tls(backend)} if backend.startswith("rediss:") else {}),
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "result_expires": policy.result_expires,
            "result_backend_transport_options": {"retry_policy": {"timeout": 5, "max_retries": 1}},
            "redis_socket_connect_timeout": 5,
            "redis_socket_timeout": 20,
            "redis_socket_keepalive": True,
            "task_track_started": True,
            "worker_max_tasks_per_child": 1,
            "worker_redirect_stdouts": False,
            "worker_proc_alive_timeout": 60,
            "worker_soft_shutdown_timeout": policy.shutdown.total_seconds(),
            "worker_send_task_events": True,
            "task_send_sent_event": True,
        },
    }


def _address(url: str) -> str:
    """An address without what it says of TLS: our options hold it; Celery reads a part of it only, and that first."""
    return url.partition("?")[0] if url.startswith("rediss:") else url


def _tls(url: str) -> dict[str, Any]:
    """TLS as the address says it: `?ssl_ca_certs=/etc/redis/ca.pem`, or `?ssl_cert_reqs=none` for no check."""
    options: dict[str, Any] = {name: text for name, text in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")}
    wanted = options.get("ssl_cert_reqs", "").lower().removeprefix("cert_")
    if wanted == "none":
        return {**options, "ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    return {**options, "ssl_cert_reqs": ssl.CERT_REQUIRED}


def make_celery(options: dict[str, Any]) -> Celery:
    """The Celery app that these arguments of the launcher describe."""
    app: Celery = make_app(  # type: ignore[no-untyped-call]
        app_args={
            **{key: value for key, value in options.items() if key != "default_queue"},
            "task_default_queue": options["default_queue"],
        }
    )
    return app


class WorkersRunLauncher(CeleryRunLauncher):
    """Dagster's own launcher, which takes a cancel for a crash and a missing answer for a death, mended."""

    def __init__(self, *, policy: CeleryPolicy = POLICY, **options: Any) -> None:
        super().__init__(**options)
        # Dagster's launcher declares its one task at each launch.
        warnings.filterwarnings("ignore", message="Task name 'execute_job' is already registered")
        self._policy = policy
        self._slots = 0
        self._slots_until = 0.0
        self._reason = ""
        self._asking = threading.Lock()

    # ---- Launching

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand a run to the broker.

        Raises:
            DagsterUserCodeUnreachableError: the broker is away; Dagster's queue then takes the run back.
        """
        try:
            super().launch_run(context)
        except AWAY as error:
            self._slots_until = 0.0
            raise DagsterUserCodeUnreachableError(
                f"Celery's broker does not answer, the run stays in the queue: {_one_line(error)}"
            ) from error

    def _launch_celery_task_run(self, run: dg.DagsterRun, task_signature: Any, routing_key: str) -> None:
        # The task's ID is the run's, so that it is known whatever becomes of the tag that is to hold it; and Flower
        # shows the run instead of a page of arguments.
        about = {"run_id": run.run_id, "job": run.job_name, "partition": run.tags.get(names.DagsterTag.PARTITION)}
        signature = task_signature.set(task_id=run.run_id, argsrepr="()", kwargsrepr=repr(about))
        super()._launch_celery_task_run(run, signature, routing_key)

    def slots(self) -> int:
        """How many runs all workers that answer can take; 0 while the broker is away."""
        with self._asking:
            if time.monotonic() >= self._slots_until:
                self._slots = self._ask_for_slots()
                self._slots_until = time.monotonic() + self._policy.slots_known.total_seconds()
            return self._slots

    def _ask_for_slots(self) -> int:
        try:
            answers = self.celery.control.inspect(timeout=self._policy.answer.total_seconds()).stats() or {}
        except AWAY as error:
            self._complain(f"because Celery's broker does not answer: {_one_line(error)}")
            return 0
        self._complain("" if answers else "because no worker answers; start one with `orchestrator worker`")
        return sum(int(answer["pool"]["max-concurrency"]) for answer in answers.values())

    def _complain(self, reason: str) -> None:
        """Log why nothing is launched, once for each reason."""
        if reason and reason != self._reason:
            _log.warning("No runs are launched, %s", reason)
        self._reason = reason

    # ---- Ending

    def terminate(self, run_id: str) -> bool:
        """Cancel a run. Reported before it is done: Dagster takes what is interrupted unreported for a dead worker."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        task = self._task(run)
        try:
            state = task.state
            task.revoke(terminate=True, signal="SIGINT")  # by default the worker's own, which its processes ignore
        except AWAY as error:
            self._instance.report_engine_event(
                f"Celery's broker does not answer ({_one_line(error)}); a training notices by itself that it is "
                "cancelled when it next renews its lease",
                run,
                cls=self.__class__,
            )
            return True
        if run.status == dg.DagsterRunStatus.STARTING and state == "PENDING":
            # No worker has begun with it; one that takes it later finds it finished.
            self._instance.report_run_canceled(run, "Cancelled while it waited for a worker")
        return True

    @property
    def supports_resume_run(self) -> bool:
        """No: a retry takes over what a dead worker left."""
        return False

    # ---- Whether it lives

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """What Celery knows of a run's worker.

        Only what is certain counts as dead. A worker that was killed as a whole tells nobody: the lease that its run
        no longer renews does, to the janitor.
        """
        try:
            state = self._task(run).state
        except AWAY as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"Redis does not answer: {_one_line(error)}")
        if state == "SUCCESS":
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        if state in ("FAILURE", "REVOKED"):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its worker's process was lost (Celery: {state})")
        if state != "PENDING":
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        # Redis does not know the task: not yet, or no more (expired, or restarted without its data).
        if names.RunTag.LEASE_UNTIL in run.tags or self._is_young(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Redis does not know its task")
        return CheckRunHealthResult(WorkerStatus.UNKNOWN, "Redis does not know its task, and it has no lease")

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """What Celery knows, for the run's log."""
        try:
            task = self._task(run)
            return f"Celery task {task.id} is {task.state}, on worker {task.worker}"
        except AWAY:
            return None

    def _task(self, run: dg.DagsterRun) -> Any:
        return self.celery.AsyncResult(run.tags.get(DAGSTER_CELERY_TASK_ID_TAG, run.run_id))

    def _is_young(self, run: dg.DagsterRun) -> bool:
        record = self._instance.get_run_record_by_id(run.run_id)
        began = record.start_time if record else None
        return began is None or datetime.now(UTC) - datetime.fromtimestamp(began, UTC) < self._policy.young


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
