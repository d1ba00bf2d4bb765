"""Whether all steps of a run share one process, as an attempt needs it."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from orchestrator import names
from orchestrator.errors import SettingsError

_ONE_PROCESS = {dg.in_process_executor.name, "execute_in_process_executor"}


def require_one_process(context: dg.OpExecutionContext, *, pipeline: str) -> None:
    """Refuse a run whose steps have a process each, before it costs money.

    Our job brings its executor. "Materialize" and backfills run Dagster's own job over all assets of the code location,
    whose executor Dagster takes from the project's Definitions only: no asset can bring one. There each step would end
    what the one before it has launched.

    Raises:
        SettingsError: says how else to launch it.
    """
    executor = context.job_def.executor_def.name
    execution = context.run_config.get("execution")
    config = execution.get("config") if isinstance(execution, Mapping) else None
    if executor in _ONE_PROCESS or (isinstance(config, Mapping) and "in_process" in config):
        return
    raise SettingsError(
        f"the steps of this run have a process each (executor {executor}), but a training needs one for all; launch it "
        f"by the job {names.training_job(pipeline)}, or write `execution: {{config: {{in_process: {{}}}}}}` in the "
        "launchpad, or give the project's Definitions `executor=dg.in_process_executor`"
    )
