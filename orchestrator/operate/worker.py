"""A Celery worker that executes whole runs, each in a process forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestrator import log_format
from orchestrator.errors import SettingsError
from orchestrator.log_lines import LinePipes
from orchestrator.operate.home import dagster_home, keep_private, prepare_home, private_files
from orchestrator.operate.serve import SECRETS_OF_THE_UI
from orchestrator.settings.dagster_yaml import require_effect
from orchestrator.settings.groups import InstallationSettings, LauncherSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import require_private_env_file

if TYPE_CHECKING:
    from orchestrator.launchers.celery import CeleryPolicy

os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
"""Read where Celery is imported: its own answer to SIGTERM waits for the end of each training, which takes hours."""

IMPORTED = (
    "boto3",
    "botocore.client",
    "dagster._core.execution.api",
    "dagster._core.execution.plan.execute_plan",
    "dagster._core.execution.run_cancellation_thread",
    "dagster._core.executor.in_process",
    "dagster._core.storage.fs_io_manager",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.dagster_run",
    "dagster._core.storage.sqlite_storage",
    "dagster._cli.api",
    "dagster_aws.components",
    "fsspec.core",
    "orchestrator.cli.main",
    "orchestrator.janitor.sensor",
    "orchestrator.pipeline.defs_folder",
    "orchestrator.pipeline.component",
    "orchestrator.storage.choice",
    "orchestrator.storage.engine",
    "orchestrator.storage.sqlite",
    "paramiko",
    "requests",
    "upath.implementations.local",
)
"""What runs import. Not `orchestrator.definitions`: each run reads the pipelines as they are when it begins."""

LAST_LINES_SECONDS = 3.0
"""How long a worker that ends waits until its last lines are written; `docker stop` gives it 10 s for all."""

_log = logging.getLogger(__name__)


def work(*, slots: int, name: str | None, say: Callable[[str], None], policy: CeleryPolicy | None = None) -> int:
    """Execute runs until a signal.

    SIGTERM, or Ctrl-C twice, ends it within seconds: its runs are left as they are, and taken over by other workers.
    Ctrl-C once lets them come to their end.

    Args:
        slots: how many runs at once.
        name: unlike those of the other workers on this machine; default: by the number of our process.
        say: takes each line for the user.
        policy: how patient we are; default: the usual one.

    Returns:
        The exit status.

    Raises:
        SettingsError: no broker is set, a setting is wrong, or a package is missing.
    """
    require_private_env_file()
    as_json = SettingsSource().read(InstallationSettings).log_format == "json"
    if as_json:
        log_format.use_json()
        say = _log.info
    settings = SettingsSource().read(LauncherSettings)
    if settings.broker is None:
        raise SettingsError(
            "a worker takes runs from CELERY_BROKER_URL, which is not set: write redis://:password@host:6379/0"
        )
    home = dagster_home()
    for variable in SECRETS_OF_THE_UI:
        os.environ.pop(variable, None)  # what trains has no use for them
    with private_files():
        say(f"DAGSTER_HOME is {home}, configured by {prepare_home(home)}")
        require_effect(home)
        keep_private(home)
        os.environ["DAGSTER_HOME"] = str(home)
        pipes = LinePipes() if as_json else None
        name = name or f"worker-{os.getpid()}"
        try:
            with pipes.redirected() if pipes else contextlib.nullcontext():
                return _work(settings, slots=slots, name=name, policy=policy, pipes=pipes)
        finally:
            if pipes:
                pipes.close(LAST_LINES_SECONDS)


def _work(
    settings: LauncherSettings, *, slots: int, name: str, policy: CeleryPolicy | None, pipes: LinePipes | None
) -> int:
    from orchestrator.launchers.chosen import chosen

    chosen(settings.model_copy(update={"kind": "celery"}))  # or says what is missing
    from celery import signals

    from orchestrator import dagster_instance
    from orchestrator.launchers.celery import POLICY, app_options, make_celery
    from orchestrator.launchers.task import declare_task

    for module in IMPORTED:
        with contextlib.suppress(ModuleNotFoundError):  # of another version: a run then imports it itself
            importlib.import_module(module)

    @signals.worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def freeze(**_arguments: object) -> None:
        # What is not touched by the collector stays shared with the processes that are forked off.
        gc.collect()
        gc.freeze()

    @signals.worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def stand_apart(**_arguments: object) -> None:
        # A signal to our whole group, by Ctrl-C or `tini -g`, is for us alone: a run takes it for a cancel.
        os.setpgid(0, 0)

    @signals.setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def log(**_arguments: object) -> None:
        # Celery's own lines only: a handler of the root logger would print each of Dagster's twice.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for system in ("celery", "kombu"):
            if not pipes:  # else the root logger has one, which knows what Dagster prints itself
                logging.getLogger(system).addHandler(handler)
            logging.getLogger(system).setLevel(logging.INFO)
        for module in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(module).addFilter(_name_run)

    if pipes:
        dagster_instance.format_console_of_runs(log_format.JsonFormatter())
    app = make_celery(app_options(settings, policy or POLICY))
    declare_task(app, pipes=pipes)
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        concurrency=slots,
        consumer_cls="orchestrator.launchers.leaving:LeavingConsumer",
        optimization="fair",
        quiet=pipes is not None,  # a picture of letters
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _name_run(record: logging.LogRecord) -> bool:
    """Have what Celery logs of a task name its run, whose ID is the task's."""
    about = getattr(record, "data", None)
    if isinstance(about, Mapping):
        record.run_id = about.get("id")
    return True
