"""`/metrics`: what is read of Dagster, EC2 and MLflow, what that costs whoever scrapes, and who may."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import errors, names
from orchestrator.dagster_instance import sql_run_storage
from orchestrator.operate.web.dagster_view import DagsterView, SensorView
from orchestrator.operate.web.metrics import MetricsPage, families, of_cloud
from orchestrator.operate.web.metrics.families import MetricSource
from orchestrator.operate.web.metrics.of_dagster import DagsterMetrics
from orchestrator.operate.web.refreshed import CachePolicy
from orchestrator.pipeline.builds.cursor import Cursor, JobCursor, UnreadRange
from orchestrator.pipeline.models.deployment_cursor import DeploymentCursor
from orchestrator.resources.ec2 import Instance
from orchestrator_tests.support import janitor_world
from orchestrator_tests.support.dagster_internals import EmptyWorkspaceTarget, RunsTable, WorkspaceProcessContext
from orchestrator_tests.support.ui import TOKEN, Ui, served
from orchestrator_tests.support.waiting import until

METRICS_TOKEN = "a-token-of-prometheus-for-the-tests-only"
PATIENT = dict.fromkeys(MetricSource, CachePolicy(fresh=0, wait=60, stale=60))
Sampled = Mapping[tuple[str, tuple[str, ...]], float]


def scraped(page: MetricsPage, accept: str = "") -> Sampled:
    """Name and values of the labels, in the order of their names → value."""
    answer = asyncio.run(page.answer(accept))
    return samples_in(bytes(answer.body).decode())


def samples_in(text: str) -> Sampled:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


OFFERS = st.tuples(
    st.sampled_from(["application/openmetrics-text", "text/plain", "*/*", ""]),
    st.lists(
        st.tuples(
            st.sampled_from(["version", " version", "version ", "escaping", "q", "charset"]),
            st.sampled_from(["abc", "", "1.0.0", "0.0.1", "0.0.4", "2.0.0", "1.0", "9.9.9", "1.x", "\u00b2.0.0", "="])
            | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=8),
        ).map("=".join),
        max_size=3,
    ),
).map(lambda offer: ";".join([offer[0], *offer[1]]))  # fmt: skip


@given(accept=st.lists(OFFERS, max_size=3).map(",".join))
@example(accept="application/openmetrics-text; version=abc")
@example(accept="text/plain; version=abc, application/openmetrics-text; version=1.0.0")
def test_whatever_a_scraper_accepts_it_is_answered(accept: str) -> None:
    answer = asyncio.run(MetricsPage({}, families.Accumulated()).answer(accept))
    media, *options = answer.headers["content-type"].replace(" ", "").split(";")
    version = next(option for option in options if option.startswith("version="))
    assert (media, version) in [
        ("text/plain", "version=0.0.4"),
        ("text/plain", "version=1.0.0"),
        ("application/openmetrics-text", "version=1.0.0"),
    ]
    assert answer.status_code == 200
    assert (b"# EOF" in bytes(answer.body)) == (media == "application/openmetrics-text")


@dg.op
def resolve() -> int:
    return 1


class Fate(dg.Config):
    error: str = ""


@dg.op
def train(config: Fate, resolved: int) -> int:
    if config.error:
        raise getattr(errors, config.error)("build 4711 failed")
    return resolved


@dg.graph_asset(key_prefix="churn")
def trained_model() -> int:
    trained: int = train(resolve())
    return trained


@dg.job
def somebody_s_own() -> None:
    resolve()


defs = dg.Definitions(
    [trained_model],
    jobs=[dg.define_asset_job("churn_training", [trained_model]), somebody_s_own],
    executor=dg.in_process_executor,
)


def run(instance: dg.DagsterInstance, job: str, error: str = "", **tags: str) -> None:
    config = {"ops": {"churn__trained_model": {"ops": {"train": {"config": {"error": error}}}}}}
    defs.resolve_job_def(job).execute_in_process(
        run_config=config if error else None,
        instance=instance,
        tags=tags,
        raise_on_error=False,
        asset_selection=[trained_model.key] if job == "__ASSET_JOB" else None,
    )


@pytest.fixture
def view() -> Iterator[DagsterView]:
    with (
        dg.instance_for_test() as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget(), version="test") as context,
    ):
        yield DagsterView(context)


def page_of(view: DagsterView) -> MetricsPage:
    counted = families.Accumulated()
    return MetricsPage({MetricSource.DAGSTER: DagsterMetrics(view, counted).look}, counted, policies=PATIENT)


def test_runs_stages_and_errors_are_counted_by_pipeline_and_never_by_build(view: DagsterView) -> None:
    run(view.instance, "churn_training")  # ended before anybody looked
    page = page_of(view)
    run(view.instance, "churn_training", **{names.DagsterTag.PARTITION: "4711"})
    run(view.instance, "churn_training", "InstanceLost")
    run(view.instance, "__ASSET_JOB", "MlflowRefused")
    run(view.instance, "somebody_s_own")
    for _ in range(2):  # the second look finds nothing new
        samples = scraped(page)
        assert samples["orchestrator_runs", ("churn", "SUCCESS")] == 2
        assert samples["orchestrator_runs", ("churn", "FAILURE")] == 2
        assert samples["orchestrator_runs", ("other", "SUCCESS")] == 1
        assert samples["orchestrator_runs_ended_total", ("churn", "SUCCESS")] == 1
        assert samples["orchestrator_runs_ended_total", ("churn", "FAILURE")] == 2
        assert samples["orchestrator_errors_total", ("ec2",)] == 1
        assert samples["orchestrator_errors_total", ("mlflow",)] == 1
        assert samples["orchestrator_stage_seconds_count", ("success", "churn", "resolve")] == 3
        assert samples["orchestrator_stage_seconds_count", ("failure", "churn", "train")] == 2
        assert samples["orchestrator_source_up", ("dagster",)] == 1
        assert samples["orchestrator_ready", ()] == 0
    assert "4711" not in str(samples)


def test_queued_runs_leases_and_retries(view: DagsterView) -> None:
    page = page_of(view)
    job, now = defs.resolve_job_def("churn_training"), datetime.now(UTC)
    view.instance.create_run_for_job(job)
    storage = sql_run_storage(view.instance)
    assert storage
    with storage.connect() as connection:  # Dagster itself enqueues runs of a workspace only
        an_hour_ago = (now - timedelta(hours=1)).replace(tzinfo=None)
        connection.execute(RunsTable.update().values(status="QUEUED", create_timestamp=an_hour_ago))
    for until_ in (now - timedelta(seconds=1), now + timedelta(hours=1)):
        tags = {names.RunTag.LEASE_UNTIL: until_.isoformat()}
        started = view.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTING)
        view.instance.report_engine_event("begun", started)
        view.instance.report_dagster_event(
            dg.DagsterEvent("PIPELINE_START", started.job_name), run_id=started.run_id, timestamp=now.timestamp() - 60
        )
    retried = view.instance.create_run_for_job(job, tags={names.DagsterTag.WILL_RETRY: "true"})
    view.instance.report_run_failed(retried)
    samples = scraped(page)
    assert samples["orchestrator_runs", ("churn", "QUEUED")] == 1
    assert 3600 <= samples["orchestrator_oldest_queued_seconds", ("churn",)] < 7200
    assert samples["orchestrator_leases_expiring", ("churn",)] == 1
    assert samples["orchestrator_run_retries_total", ("churn",)] == 1


def test_what_the_janitor_reports_is_counted_from_now_on(view: DagsterView) -> None:
    def report(*rows: tuple[str, str]) -> None:
        table = [dg.TableRecord({"what": what, "why": "-", "result": result}) for what, result in rows]
        view.instance.report_runless_asset_event(
            dg.AssetObservation([names.JANITOR], metadata={"actions": dg.MetadataValue.table(table)})
        )

    report(("terminate instance i-0 (churn 6)", "done"))
    page = page_of(view)
    scraped(page)
    report(("terminate instance i-1 (churn 7)", "done"), ("end MLflow run abc (churn 7) as FAILED", "AWS is away"))
    report(("terminate instance i-2 (churn 8)", "done"), ("mark Dagster run r as failed", "dry run: not done"))
    for _ in range(2):
        samples = scraped(page)
        found = {
            labels: value for (name, labels), value in samples.items() if name == "orchestrator_janitor_actions_total"
        }
        assert found == {
            ("terminate_instance", "done"): 2,
            ("end_mlflow_run", "failed"): 1,
            ("end_dagster_run", "dry_run"): 1,
        }


def test_sensors_their_lag_and_failed_ticks(view: DagsterView, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = (UnreadRange(high=20, low=11, launch=True), UnreadRange(high=9))
    cursor = Cursor(job="team/churn", jobs={"team/churn": JobCursor(newest=20, unread=gaps)}).dump()
    now = datetime.now(UTC).timestamp()

    def sensors() -> Iterator[SensorView]:
        shared: dict[str, Any] = {"interval": 15, "ticked_at": now + 5, "may_have_failed": True}
        yield SensorView(name="churn_jenkins_sensor", is_on=True, cursor=cursor, **shared)
        yield SensorView(name="iris_jenkins_sensor", is_on=False, cursor="{broken", **shared)

    class Tick:
        timestamp = now + 5
        error = None

    cursors = {"churn": DeploymentCursor(champion="7", in_use="").dump(), "iris": "3 3", "new": None}
    monkeypatch.setattr(view, "deployment_cursors", cursors.items)
    monkeypatch.setattr(view, "sensors", sensors)
    monkeypatch.setattr(view, "failed_ticks", lambda sensor, *, after: [Tick] if after < Tick.timestamp else [])
    page = page_of(view)
    for _ in range(2):
        samples = scraped(page)
        assert samples["orchestrator_sensor_lag_builds", ("churn",)] == 10
        assert samples["orchestrator_sensor_lag_builds", ("iris",)] == 0
        assert samples["orchestrator_sensor_on", ("iris_jenkins_sensor",)] == 0
        assert samples["orchestrator_champion_waits", ("churn",)] == 1
        assert samples["orchestrator_champion_waits", ("iris",)] == 0
        assert ("orchestrator_champion_waits", ("new",)) not in samples
        assert samples["orchestrator_sensor_tick_age_seconds", ("churn_jenkins_sensor",)] < 60
        assert ("orchestrator_sensor_tick_age_seconds", ("iris_jenkins_sensor",)) not in samples
        assert samples["orchestrator_errors_total", ("other",)] == 2


def test_what_instances_cost_and_which_live_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    found = [
        janitor_world.instance(id="i-1", partition="4711"),
        janitor_world.instance(id="i-2", pipeline="churn", power_off_at=now - timedelta(minutes=11)),
        janitor_world.instance(id="i-3", pipeline="churn", state="shutting-down"),
        janitor_world.instance(id="i-4", pipeline="unpriced"),
    ]
    asked: list[str] = []

    class Account:
        def __init__(self, settings: object, *, policy: object) -> None: ...

        def find_all(self) -> Sequence[Instance]:
            return found

        def hourly_usd(self, instance: Instance) -> float | None:
            asked.append(instance.id)
            return 0.5

    monkeypatch.setattr(of_cloud, "Ec2", Account)
    look = of_cloud.Ec2Metrics(now=lambda: now).look
    for _ in range(2):
        samples = scraped(MetricsPage({MetricSource.EC2: look}, families.Accumulated(), policies=PATIENT))
        assert samples["orchestrator_instances", ("t3.medium", "on-demand", "churn", "shutting-down")] == 1
        assert samples["orchestrator_instances_usd_per_hour", ("churn",)] == 0.5
        assert samples["orchestrator_instances_overdue", ("churn",)] == 1
        assert samples["orchestrator_instances_overdue", ("iris",)] == 0
        assert samples["orchestrator_instances_unpriced", ()] == 0
    assert len(asked) == 1  # one type in one zone
    assert "4711" not in str(samples)


def test_an_aws_that_hangs_delays_no_scrape_and_is_named() -> None:
    released = threading.Event()

    def look() -> Sequence[GaugeMetricFamily]:
        if not released.wait(60):
            return ()
        raise errors.Ec2Error("AWS is away")

    policies = {MetricSource.EC2: CachePolicy(fresh=0, wait=0, stale=60)}
    page = MetricsPage({MetricSource.EC2: look}, families.Accumulated(), policies=policies)
    assert ("orchestrator_source_up", ("ec2",)) not in scraped(page)
    released.set()
    until(lambda: scraped(page).get(("orchestrator_source_up", ("ec2",))) == 0)


def test_without_a_ceiling_neither_aws_nor_mlflow_is_asked_for_the_budget() -> None:
    assert of_cloud.look_at_budget() == ()


def test_every_gauge_has_a_name_a_meaning_and_labels_without_end_are_none() -> None:
    endless = {"build", "partition", "run", "run_id", "instance_id", "commit"}
    assert all(spec.name.startswith("orchestrator_") and spec.meaning for spec in families.GAUGES)
    assert not [spec for spec in families.GAUGES if endless & set(spec.labels)]
    assert len(families.offered_names()) > 20


# ---- Served


@pytest.mark.services
def test_who_may_scrape(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(
        tmp_path_factory.mktemp("ui"),
        roles=["viewer"],
        UI_TOKEN=TOKEN,
        METRICS_TOKEN=METRICS_TOKEN,
        UI_HOSTS="orch.example",
    ) as ui:
        scraper = ("Authorization", f"Bearer {METRICS_TOKEN}")
        for credential in (scraper, ui.bearer("viewer"), ui.bearer(), ui.cookie()):
            answer = ui.send("GET", "/metrics", credential)
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/plain; version=")
            assert samples_in(answer.text)["orchestrator_source_up", ("dagster",)] == 1
        for headers in ((), (("Authorization", "Bearer wrong"),), (("Authorization", f"Basic {METRICS_TOKEN}"),)):
            assert ui.send("GET", "/metrics", *headers).status == 401
        assert ui.send("GET", "/metrics", scraper, host="evil.example").status == 421
        assert ui.send("GET", "/metrics", scraper, host="orch.example").status == 200
        assert ui.send("GET", "/metrics", scraper, ("Origin", "https://evil.example")).status == 403
        # It opens nothing else.
        assert ui.send("GET", "/server_info", scraper).status == 401
        assert ui.send("POST", "/metrics", scraper, body="").status == 401
        assert ui.graphql("{version}", scraper).status == 401
        assert METRICS_TOKEN not in ui.command.output
        for process in ui.command.family()[1:]:
            assert METRICS_TOKEN not in str(process.environ())
        until(lambda: _is_up(ui, scraper, lambda up: up == {"dagster": 1, "ec2": 0, "mlflow": 1}))


def _is_up(ui: Ui, scraper: tuple[str, str], right: Callable[[Mapping[str, float]], bool]) -> bool:
    samples = samples_in(ui.send("GET", "/metrics", scraper).text)
    return right({labels[0]: value for (name, labels), value in samples.items() if name == "orchestrator_source_up"})


@pytest.mark.services
def test_where_the_ui_itself_is_open_so_are_its_metrics(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("ui"), UI_LOGIN="off") as ui:
        assert ui.send("GET", "/metrics").status == 200
        assert ui.send("GET", "/metrics", host="evil.example").status == 421
