"""What we use of Dagster without its promise is there, has the shape that we expect, and does what we use it for."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import dagster as dg
import dagster_graphql
import dagster_webserver
import pytest

import orchestrator
from orchestrator import dagster_instance, names
from orchestrator.errors import SettingsError
from orchestrator_tests.support.dagster_internals import (
    DATA_VERSION_TAG,
    BulkActionsFilter,
    BulkActionStatus,
    EventLogStorage,
    PartitionBackfill,
    RegisteredCodeLocationOrigin,
    RemoteRepositoryOrigin,
    SqlRunStorage,
    dagster_tags,
    is_public,
)
from orchestrator_tests.support.instances import new_instance

PRODUCT = Path(orchestrator.__file__).parent
INSTANCE = dg.DagsterInstance


@pytest.fixture
def dagster() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


# ---- The shape


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (INSTANCE.add_run_tags, ["run-1", {}]),
        (INSTANCE.report_run_failed, ["run", "message", "reason"]),
        (INSTANCE.report_run_canceled, ["run", "message"]),
        (INSTANCE.get_materialized_partitions, ["key"]),
        (EventLogStorage.set_concurrency_slots, ["pool", 3]),
    ],
)
def test_a_method_takes_what_we_hand_it(function: Callable[..., Any], arguments: list[Any]) -> None:
    inspect.signature(function).bind("self", *arguments)


def test_backfills_are_found_by_their_ids() -> None:
    inspect.signature(INSTANCE.get_backfills).bind("self", filters=None)
    assert BulkActionsFilter(backfill_ids=["a"]).backfill_ids == ["a"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (INSTANCE, "run_retries_max_retries"),
        (INSTANCE, "run_retries_retry_on_asset_or_op_failure"),
        (INSTANCE, "event_log_storage"),
        (INSTANCE, "run_storage"),
        (INSTANCE, "daemon_cursor_storage"),
        (SqlRunStorage, "connect"),
        (EventLogStorage, "supports_global_concurrency_limits"),
        (dg.DagsterRun, "remote_job_origin"),
        (dg.JobDefinition, "asset_layer"),
        (dg.AssetKey, "to_python_identifier"),
        (dg.SensorEvaluationContext, "code_location_origin"),
        (dg.SensorEvaluationContext, "log"),
    ],
)
def test_an_attribute_is_there(owner: type, name: str) -> None:
    assert hasattr(owner, name)


DAGSTERS_NAMES = {
    "PARTITION": "PARTITION_NAME_TAG",
    "PRIORITY": "PRIORITY_TAG",
    "RUN_KEY": "RUN_KEY_TAG",
    "BACKFILL": "BACKFILL_ID_TAG",
    "ROOT_RUN": "ROOT_RUN_ID_TAG",
    "WILL_RETRY": "WILL_RETRY_TAG",
    "AUTO_RETRY_RUN": "AUTO_RETRY_RUN_ID_TAG",
    "FAILURE_REASON": "RUN_FAILURE_REASON_TAG",
    "RETRY_STRATEGY": "RETRY_STRATEGY_TAG",
    "RETRY_ON_OP_FAILURE": "RETRY_ON_ASSET_OR_OP_FAILURE_TAG",
    "MAX_RETRIES": "MAX_RETRIES_TAG",
}


def test_dagsters_tags_are_named_as_dagster_names_them() -> None:
    ours = {name: value for name, value in vars(names.DagsterTag).items() if name.isupper()}
    dagsters = {name: getattr(dagster_tags, constant) for name, constant in DAGSTERS_NAMES.items()}
    assert ours == {**dagsters, "DATA_VERSION": DATA_VERSION_TAG}


UNPROMISED = {
    name for name, member in inspect.getmembers_static(INSTANCE) if not name.startswith("_") and not is_public(member)
}


def unpromised_calls(source: str) -> list[str]:
    """Where a program asks something of a Dagster instance that is not public."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in UNPROMISED
        and ast.unparse(node.value) in ("instance", "context.instance", "self._instance", "self._dagster")
    ]


@pytest.mark.parametrize("source", ["context.instance.get_runs()", "self._instance.report_run_failed(run)"])
def test_a_call_of_a_method_that_is_not_public_is_noticed(source: str) -> None:
    assert unpromised_calls(source)
    assert not unpromised_calls("self._instance.get_run_by_id(run_id); context.log.info('')")


def test_nothing_else_of_the_product_uses_what_is_not_public() -> None:
    web = PRODUCT / "operate" / "web"
    allowed = (PRODUCT / "dagster_instance.py", web / "webserver.py", web / "dagster_view.py")  # which have their tests
    made_of_dagsters = (PRODUCT / "storage", PRODUCT / "launchers")  # whose kinds are no public interface
    files = [path for path in PRODUCT.rglob("*.py") if path not in allowed and path.parent not in made_of_dagsters]
    found = {str(path.relative_to(PRODUCT)): unpromised_calls(path.read_text()) for path in files}
    assert {name: calls for name, calls in found.items() if calls} == {}


# ---- What it does


@dg.job
def nightly() -> None: ...


def new_run(dagster: dg.DagsterInstance, **attributes: Any) -> dg.DagsterRun:
    return dagster.create_run_for_job(nightly, **attributes)


def test_two_threads_that_tag_a_run_do_not_undo_each_others_tags(dagster: dg.DagsterInstance) -> None:
    run = new_run(dagster)
    threads = [
        threading.Thread(target=dagster_instance.add_run_tags, args=(dagster, run.run_id, {f"tag-{number}": "set"}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tagged = dagster.get_run_by_id(run.run_id)
    assert tagged is not None
    assert {f"tag-{number}" for number in range(8)} <= tagged.tags.keys()


def test_a_run_is_ended_by_name(dagster: dg.DagsterInstance) -> None:
    failed, cancelled = new_run(dagster), new_run(dagster)
    dagster_instance.report_failed(dagster, failed, "its worker is gone")
    dagster_instance.report_canceled(dagster, cancelled, "its worker is gone")
    statuses = [run.status.value for one in (failed, cancelled) if (run := dagster.get_run_by_id(one.run_id))]
    assert statuses == ["FAILURE", "CANCELED"]
    assert dagster.all_logs(failed.run_id)[-1].message == "its worker is gone"


def test_run_retries_are_those_of_dagster_yaml() -> None:
    assert retries_of({"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}) == (2, False)
    assert retries_of({"enabled": True, "max_retries": 5}) == (5, True)


def retries_of(configured: dict[str, Any]) -> tuple[int, bool]:
    with new_instance(overrides={"run_retries": configured}) as instance:
        retries = dagster_instance.run_retries(instance)
    return retries.most, retries.after_step_failure


def test_only_a_backfill_that_goes_on_is_unfinished(dagster: dg.DagsterInstance) -> None:
    for status in BulkActionStatus:
        dagster.add_backfill(
            PartitionBackfill(
                backfill_id=status.value,
                status=status,
                from_failure=False,
                tags={},
                backfill_timestamp=0.0,
                partition_names=[],
                reexecution_steps=[],
            )
        )
    asked = [*(status.value for status in BulkActionStatus), "deleted"]
    goes_on = dagster_instance.unfinished_backfills(dagster, asked)
    assert goes_on == {"REQUESTED", "CANCELING", "FAILING"}
    assert dagster_instance.unfinished_backfills(dagster, ["REQUESTED"]) == {"REQUESTED"}
    assert dagster_instance.unfinished_backfills(dagster, []) == frozenset()


def test_the_partitions_that_were_materialised_are_known(dagster: dg.DagsterInstance) -> None:
    key = dg.AssetKey(["iris", "jenkins_build"])
    dagster.report_runless_asset_event(dg.AssetMaterialization(key, partition="7"))
    assert dagster_instance.materialized_partitions(dagster, key) == {"7"}


KEY = "orchestrator/test"


def test_of_several_values_all_agree_on_the_first(dagster: dg.DagsterInstance) -> None:
    assert dagster_instance.kept_value(dagster, KEY) is None
    assert dagster_instance.keep_value(dagster, KEY, "first") == "first"
    assert dagster_instance.keep_value(dagster, KEY, "second") == "first"
    assert dagster_instance.kept_value(dagster, KEY) == "first"


def test_a_dagster_in_memory_keeps_values_too() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert dagster_instance.keep_value(instance, KEY, "first") == "first"
        assert dagster_instance.keep_value(instance, KEY, "second") == "first"


def test_threads_that_keep_a_value_at_once_agree(dagster: dg.DagsterInstance) -> None:
    together = threading.Barrier(6)

    def keep(number: int) -> str:
        together.wait()
        return dagster_instance.keep_value(dagster, KEY, f"value {number}")

    with ThreadPoolExecutor(6) as pool:
        agreed = set(pool.map(keep, range(6)))
    assert agreed == {dagster_instance.kept_value(dagster, KEY)}


def test_processes_that_keep_a_value_at_once_agree(dagster: dg.DagsterInstance) -> None:
    """Each says that it is ready, and goes on when its standard input closes."""
    program = (
        "import sys, dagster as dg\n"
        "from orchestrator.dagster_instance import keep_value\n"
        "instance = dg.DagsterInstance.from_config(sys.argv[1])\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
        "print(keep_value(instance, sys.argv[2], sys.argv[3]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, dagster.root_directory, KEY, value],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in ("a", "b", "c")
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    agreed = {process.stdout.read() for process in processes if process.stdout}
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert agreed == {f"{dagster_instance.kept_value(dagster, KEY)}\n"}


@pytest.mark.parametrize("package", [dagster_graphql, dagster_webserver])
def test_no_request_to_the_webserver_reads_what_is_kept(package: ModuleType) -> None:
    """GraphQL and the webserver's own routes never ask for a daemon's cursors, nor for the table they are in."""
    sources = [path.read_text() for path in Path(str(package.__file__)).parent.rglob("*.py")]
    assert len(sources) > 3
    for name in ("get_cursor_values", "daemon_cursor_storage", "KeyValueStoreTable", "kvs"):
        assert not any(re.search(rf"\b{name}\b", source) for source in sources)


@dg.op
def resolve() -> int:
    return 1


@dg.graph_asset(key=["iris", "trained_model"])
def trained_model() -> Any:
    return resolve()


def test_what_a_job_materialises_and_which_steps_are_an_assets() -> None:
    job = dg.define_asset_job("iris_training", selection=[trained_model])
    repository = dg.Definitions(assets=[trained_model], jobs=[job, nightly]).get_repository_def()
    assert dagster_instance.assets_of_job(repository, "iris_training") == frozenset({trained_model.key})
    assert dagster_instance.assets_of_job(repository, "nightly") == frozenset()
    assert dagster_instance.assets_of_job(repository, "elsewhere") is None


def test_a_step_belongs_to_the_asset_whose_graph_it_is_in(dagster: dg.DagsterInstance) -> None:
    result = dg.materialize([trained_model], instance=dagster)
    steps = {event.step_key for event in result.get_step_success_events() if event.step_key}
    assert dagster_instance.has_step_of(steps, trained_model.key)
    assert not dagster_instance.has_step_of(steps, dg.AssetKey(["iris", "trained"]))


def test_a_run_says_where_it_comes_from(dagster: dg.DagsterInstance) -> None:
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__").get_job_origin("nightly")
    run = dg.DagsterRun(job_name="nightly", run_id="run-1", remote_job_origin=origin)
    assert dagster_instance.location_of(run) == "here"
    assert dagster_instance.location_of(new_run(dagster)) is None


def pool_limits(dagster: dg.DagsterInstance) -> dict[str, int]:
    return {pool.name: pool.limit for pool in dagster.event_log_storage.get_pool_limits()}


def test_a_pool_takes_a_limit_and_a_new_one(dagster: dg.DagsterInstance) -> None:
    dagster_instance.set_pool_limit(dagster, pool=names.INSTANCE_POOL, limit=3)
    assert pool_limits(dagster) == {names.INSTANCE_POOL: 3}
    dagster_instance.set_pool_limit(dagster, pool=names.INSTANCE_POOL, limit=1)
    assert pool_limits(dagster) == {names.INSTANCE_POOL: 1}


def test_a_storage_that_keeps_no_limits_is_named() -> None:
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(SettingsError, match="InMemoryEventLogStorage"):
        dagster_instance.set_pool_limit(instance, pool=names.INSTANCE_POOL, limit=3)


def test_what_our_modules_log_during_a_tick_is_in_the_ticks_own_log() -> None:
    lines: list[str] = []

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    page = logging.Logger("page")
    page.addHandler(Log())
    ours = logging.getLogger("orchestrator.janitor.actions")

    def elsewhere(name: str, line: str) -> None:
        thread = threading.Thread(target=ours.info, args=(line,), name=name)
        thread.start()
        thread.join()

    with dagster_instance.logged_to_tick(cast(Any, SimpleNamespace(log=page)), threads="janitor"):
        ours.info("Terminated instance %s", "i-1")
        elsewhere("janitor_0", "Trying again")
        elsewhere("another sensor", "No new build")
        logging.getLogger("requests").warning("Connection pool is full")
    ours.info("after the tick")
    assert lines == ["INFO Terminated instance i-1", "INFO Trying again"]
