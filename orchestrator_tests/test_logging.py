"""What our modules log reaches the reader of a run, at the step that it happened in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

DAGSTER_YAML = Path(__file__).parents[1] / "dagster.yaml"

# As `_log` of the modules that these names belong to, which need not be imported for it.
MODULES = ("orchestrator.resources.ec2.prices", "orchestrator.pipeline.training.lease")


@dg.op
def first() -> None:
    logging.getLogger(MODULES[0]).warning("No price of t3.medium")


@dg.op(ins={"after": dg.In(dg.Nothing)})
def second() -> None:
    thread = threading.Thread(target=logging.getLogger(MODULES[1]).info, args=("Lease not renewed",))
    thread.start()
    thread.join()


@dg.job(executor_def=dg.in_process_executor)
def two_steps() -> None:
    second(first())


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    python_logs = yaml.safe_load(DAGSTER_YAML.read_text())["python_logs"]
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"python_logs": python_logs}) as instance:
        yield instance


def test_a_line_of_any_module_is_in_the_event_log_at_its_step(instance: dg.DagsterInstance) -> None:
    run = two_steps.execute_in_process(instance=instance)
    lines = {entry.user_message: entry.step_key for entry in instance.all_logs(run.run_id)}
    assert lines["No price of t3.medium"] == "first"
    assert lines["Lease not renewed"] == "second"
