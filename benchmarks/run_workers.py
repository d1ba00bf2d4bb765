"""What a waiting run costs where runs live, and how long its start, its cancel and the loss of its process take.

    python -m benchmarks.run_workers --launcher celery [--runs 4]

The run has imported what a training's run imports, and waits. For `local`, the code server is there already, as under
`serve`; for `celery`, the worker (needs Debian's redis-server). Prints the load of the machine first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import psutil

from orchestrator.operate.home import prepare_home
from orchestrator_sandbox.processes.child import ChildProcess
from orchestrator_tests.support.celery_workers import RedisServer, await_ready
from orchestrator_tests.support.dagster_internals import (
    LaunchRunContext,
    ModuleTarget,
    WorkerStatus,
    WorkspaceProcessContext,
    starting_event,
)
from orchestrator_tests.support.waiting import until

MODULE = "benchmarks.waiting_job"
PROJECT = Path(__file__).parents[1]
MB = 1024 * 1024
PATIENCE = 300


class Runs:
    """Launches runs, and looks at them.

    Args:
        instance: Dagster.
        context: has loaded the job.
        folder: where the runs say that they have begun.
    """

    def __init__(self, instance: dg.DagsterInstance, context: WorkspaceProcessContext, folder: Path) -> None:
        self._instance = instance
        self._request = context.create_request_context()
        (location,) = self._request.code_locations
        (repository,) = location.get_repositories().values()
        self._job = repository.get_full_job("waiting")
        self._folder = folder

    def begun(self) -> tuple[str, float]:
        """Launch a run; return its ID, and how many seconds its first step took to begin."""
        from benchmarks.waiting_job import waiting  # only now, because it imports everything

        folder = Path(tempfile.mkdtemp(dir=self._folder))
        run = self._instance.create_run_for_job(
            waiting,
            run_config={"ops": {"wait": {"config": {"folder": str(folder)}}}},
            remote_job_origin=self._job.get_remote_origin(),
            job_code_origin=self._job.get_python_origin(),
        )
        self._instance.report_dagster_event(starting_event(run), run_id=run.run_id)
        began = time.time()
        launching = LaunchRunContext(dagster_run=self.run(run.run_id), workspace=self._request)
        self._instance.run_launcher.launch_run(launching)
        until((folder / "begun").exists, seconds=PATIENCE)
        return run.run_id, float(until((folder / "begun").read_text)) - began

    def run(self, run_id: str) -> dg.DagsterRun:
        """As Dagster has it now."""
        run = self._instance.get_run_by_id(run_id)
        assert run is not None  # noqa: S101 - we have made it
        return run

    def family(self, run_id: str) -> list[psutil.Process]:
        """Its process, and those that this has started."""
        messages = (event.message for event in self._instance.all_logs(run_id))
        line = next(message for message in messages if message.startswith("Started process for run"))
        process = psutil.Process(int(line.rpartition("pid: ")[2].rstrip(").")))
        return [process, *process.children(recursive=True)]

    def cancel(self, run_id: str) -> float:
        """Cancel it; return how many seconds that took."""
        began = time.monotonic()
        self._instance.run_launcher.terminate(run_id)
        until(lambda: self.run(run_id).is_finished, seconds=PATIENCE)
        return time.monotonic() - began

    def lose(self, run_id: str) -> float | None:
        """End its process; return after how many seconds the launcher knows; None: it never does."""
        launcher = self._instance.run_launcher
        self.family(run_id)[0].kill()
        began = time.monotonic()
        if not launcher.supports_check_run_worker_health:
            return None
        until(
            lambda: launcher.check_run_worker_health(self.run(run_id)).status == WorkerStatus.FAILED, seconds=PATIENCE
        )
        return time.monotonic() - began


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", choices=["local", "celery"], default="local")
    parser.add_argument("--runs", type=int, default=4, help="how many wait at once (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as exits:
        folder = Path(directory)
        prepare_home(folder / "home")
        os.environ["DAGSTER_HOME"] = str(folder / "home")
        os.environ["RUN_LAUNCHER"] = options.launcher
        if options.launcher == "celery":
            os.environ["CELERY_BROKER_URL"] = exits.enter_context(RedisServer(folder / "redis")).url
        instance = exits.enter_context(dg.DagsterInstance.from_config(str(folder / "home")))
        if options.launcher == "celery":
            words = ("-m", "orchestrator.cli", "worker", "--slots", str(options.runs))
            worker = ChildProcess([sys.executable, *words], name="the worker", log=folder / "worker.log", cwd=PROJECT)
            await_ready(exits.enter_context(worker))
        target = ModuleTarget(MODULE, attribute="defs", working_directory=str(PROJECT), location_name="benchmark")
        context = exits.enter_context(WorkspaceProcessContext(instance, target))
        measure(Runs(instance, context, folder), at_once=options.runs)


def measure(runs: Runs, *, at_once: int) -> None:
    """Print the figures."""
    _show("load of this machine", psutil.getloadavg()[0])
    begun = [runs.begun() for _ in range(at_once)]
    families = [runs.family(run_id) for run_id, _ in begun]
    own = [family[0].memory_full_info().uss for family in families]
    whole = [sum(process.memory_full_info().uss for process in family) for family in families]
    _show("memory of a waiting run's process that it shares with none, MB", sum(own) / at_once / MB)
    _show("with its helpers, MB", sum(whole) / at_once / MB)
    _show("processes of a waiting run", sum(map(len, families)) / at_once)
    _show("start: from the launch to the first step, s", sum(seconds for _, seconds in begun) / at_once)
    _show("cancel, until its end is recorded, s", runs.cancel(begun[0][0]))
    noticed = runs.lose(begun[1][0])
    if noticed is not None:
        _show("loss of its process, until the launcher knows, s", noticed)
    for run_id, _ in begun[2:]:
        runs.cancel(run_id)


def _show(what: str, figure: float) -> None:
    sys.stdout.write(f"{what}: {figure:.1f}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
