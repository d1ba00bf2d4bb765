"""The asset `P/champion_model`: registers what was trained since the last time, and says which version is the best."""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets as objects.
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import dagster as dg

from orchestrator import names
from orchestrator.errors import DeploymentError, OrchestratorError
from orchestrator.names import MlflowTag
from orchestrator.pipeline.models.champion import Candidate, Decision, settle
from orchestrator.pipeline.models.checks import other_data
from orchestrator.pipeline.models.declared import ChampionRule
from orchestrator.pipeline.models.registration import Registration, register_all, remove_old
from orchestrator.printable import printable
from orchestrator.resources.jenkins import commit_url
from orchestrator.resources.mlflow import Mlflow, MlflowResource
from orchestrator.resources.targets import Target
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource

DECIDED_UP_TO = "decided up to"
"""Label of metadata: the newest recorded model that a decision knew, by Dagster's number of the event."""

RECORDS_PER_PAGE = 100
MOST_RECORDS = 1000
MOST_ROWS = 20
LOOKED_BACK = 10
"""Decisions: two at the same moment may be recorded in another order than they were begun in."""

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_log = logging.getLogger(__name__)


def trained_model_key(pipeline: str) -> dg.AssetKey:
    """What a decision is about."""
    return dg.AssetKey([pipeline, names.TRAINED_MODEL])


def champion_key(pipeline: str) -> dg.AssetKey:
    """What it is recorded as."""
    return dg.AssetKey([pipeline, names.CHAMPION_MODEL])


def newest_model(instance: dg.DagsterInstance, pipeline: str) -> int:
    """Dagster's number of the newest event that records a trained model; 0: there is none."""
    records = instance.fetch_materializations(trained_model_key(pipeline), limit=1).records
    return records[0].storage_id if records else 0


def decided_up_to(instance: dg.DagsterInstance, pipeline: str) -> int:
    """Up to which of these events the champion was chosen."""
    decided = 0
    for record in instance.fetch_materializations(champion_key(pipeline), limit=LOOKED_BACK).records:
        event = record.asset_materialization
        value = event.metadata.get(DECIDED_UP_TO) if event else None
        if isinstance(value, dg.IntMetadataValue) and value.value is not None:
            decided = max(decided, value.value)
    return decided


def new_models(instance: dg.DagsterInstance, pipeline: str, *, after: int) -> Iterator[dg.EventLogRecord]:
    """The events that record trained models after one of them, newest first; MOST_RECORDS of them."""
    wanted = dg.AssetRecordsFilter(asset_key=trained_model_key(pipeline), after_storage_id=after)
    cursor: str | None = None
    for _ in range(MOST_RECORDS // RECORDS_PER_PAGE):
        page = instance.fetch_materializations(wanted, limit=RECORDS_PER_PAGE, cursor=cursor)
        yield from page.records
        if not page.has_more:
            return
        cursor = page.cursor
    _log.warning(f"Looked at the newest {MOST_RECORDS} models of pipeline {pipeline} that are not decided on, only")


def mlflow_runs(instance: dg.DagsterInstance, pipeline: str, *, after: int) -> list[str]:
    """The MLflow runs of these models, the oldest first, each once; anybody may report materialisations."""
    found: dict[str, None] = {}
    for record in new_models(instance, pipeline, after=after):
        event = record.asset_materialization
        value = event.metadata.get("MLflow run ID") if event else None
        text = value.value if isinstance(value, dg.TextMetadataValue) else None
        if text is not None and _RUN_ID.fullmatch(text):
            found[text] = None
    return list(reversed(found))


def champion_model(
    rule: ChampionRule, settings: SettingsSource, *, target: Callable[[], Target] | None = None
) -> dg.AssetsDefinition:
    """Make the asset `P/champion_model`, which has no partitions: it is about all builds.

    Args:
        rule: how the champion is found.
        settings: of the pipeline; read when a run needs them.
        target: what the champion is put into use in; the version that is in use there is not removed.
    """
    pipeline = rule.pipeline

    @dg.asset(
        name=names.CHAMPION_MODEL,
        key_prefix=[pipeline],
        group_name=pipeline,
        deps=[trained_model_key(pipeline)],
        # The attempts' resource renews the lease of this run, too: a dead one is noticed.
        required_resource_keys={names.ResourceKey.MLFLOW, names.ResourceKey.ATTEMPTS},
        description=f"The best of all models of {pipeline} by {rule.metric} ({rule.goal}): the version that the alias "
        f"`{names.CHAMPION_ALIAS}` of the registered model {rule.model} points to.",
        kinds={"mlflow"},
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        resource: MlflowResource = getattr(context.resources, names.ResourceKey.MLFLOW)
        try:
            read = settings.read(MlflowSettings)
            with resource.connect(read) as connected:
                policy = connected.policy
                seconds = max(policy.total_seconds, read.patience_minutes * 60)
                mlflow = connected.with_policy(policy.with_total(seconds))
                return _choose(context.instance, mlflow, rule, keep=read.keep_versions, target=target)
        except OrchestratorError as error:
            raise dg.Failure(
                description=str(error), metadata={"kind": type(error).__name__}, allow_retries=False
            ) from error

    return asset


def _choose(
    instance: dg.DagsterInstance, mlflow: Mlflow, rule: ChampionRule, *, keep: int, target: Callable[[], Target] | None
) -> dg.MaterializeResult[None]:
    newest = newest_model(instance, rule.pipeline)  # before anything else: what comes later is decided on later
    runs = mlflow_runs(instance, rule.pipeline, after=decided_up_to(instance, rule.pipeline))
    registration = register_all(mlflow, rule, runs)
    decision = settle(mlflow.registry, mlflow, rule)
    needed = {each.version.version for each in (decision.champion, decision.runner_up) if each}
    removed = _remove_old(mlflow, rule, keep=keep, needed=needed, target=target)
    _log.info(summary(decision, rule))
    champion = decision.champion
    return dg.MaterializeResult(
        metadata={
            **champion_metadata(mlflow, decision, rule),
            **_registered(registration, removed),
            DECIDED_UP_TO: dg.MetadataValue.int(newest),
        },
        data_version=dg.DataVersion(champion.version.version) if champion else None,
    )


def _remove_old(
    mlflow: Mlflow, rule: ChampionRule, *, keep: int, needed: set[str], target: Callable[[], Target] | None
) -> list[str]:
    """Remove old versions, but never the one in use: under `approval` it may be older than any that would stay."""
    if keep and target is not None:
        place = target()
        try:
            release = place.state() or place.lost()
        except DeploymentError as error:
            _log.warning(f"Not removed old versions of {rule.model} (KEEP_VERSIONS): which one is in use? {error}")
            return []
        if release is not None and release.model == rule.model:
            needed = {*needed, release.version}
    return remove_old(mlflow, rule, keep=keep, needed=needed)


def summary(decision: Decision, rule: ChampionRule) -> str:
    """Who won, and by how much, in one sentence."""
    champion = decision.champion
    if champion is None:
        return f"{rule.model} has no champion: no version passed all of its checks"
    kept = f"is now the champion, after version {decision.was}" if decision.changed and decision.was else ""
    kept = kept or ("is the first champion" if decision.changed else "stays the champion")
    sentence = f"version {champion.version.version} of {rule.model} {kept}"
    if champion.value is not None:
        sentence += f": {rule.metric} {champion.value:.6g}"
    if champion.promotion is not None:
        sentence += f", promoted by {champion.promotion.by} ({champion.promotion.reason})"
    elif (lead := lead_of(decision, rule)) is not None and decision.runner_up is not None:
        sentence += f", {abs(lead):.6g} better than version {decision.runner_up.version.version}"
    return printable(sentence)[:1000]


def lead_of(decision: Decision, rule: ChampionRule) -> float | None:
    """By how much the champion is better than the best of the others; None: not known."""
    champion, runner_up = decision.champion, decision.runner_up
    if champion is None or runner_up is None or champion.value is None or runner_up.value is None:
        return None
    return rule.goal.gain(champion.value, runner_up.value)


def champion_metadata(mlflow: Mlflow, decision: Decision, rule: ChampionRule) -> Mapping[str, dg.MetadataValue]:
    """What Dagster shows of a decision; what is unknown is left out."""
    known: dict[str, dg.MetadataValue | None] = {
        "champion": dg.MetadataValue.text(summary(decision, rule)),
        "versions": _table(decision.candidates, rule),
    }
    if (champion := decision.champion) is not None:
        version, run = champion.version, champion.run
        page, run_page = mlflow.registry.url_of(version), mlflow.run_url(run) if run else None
        known |= {
            "version": dg.MetadataValue.text(version.version),
            "model": dg.MetadataValue.url(page) if page else dg.MetadataValue.text(rule.model),
            "MLflow run": dg.MetadataValue.url(run_page) if run_page else None,
            "MLflow run ID": dg.MetadataValue.text(version.run_id),
            "Jenkins build": _link(version.tags.get(MlflowTag.JENKINS_URL)),
            "commit": _commit(champion),
            f"metrics/{printable(rule.metric)[:200]}": _float(champion.value),
            "better than the next by": _float(lead_of(decision, rule), digits=6),
            "warning": _doubt(decision),
        }
    return {key: value for key, value in known.items() if value is not None}


def _table(candidates: Sequence[Candidate], rule: ChampionRule) -> dg.MetadataValue | None:
    newest = list(reversed(candidates))[:MOST_ROWS]
    if not newest:
        return None
    columns = ("version", "build", rule.metric, "remark")
    records = [
        dg.TableRecord(
            dict(
                zip(
                    columns,
                    (
                        each.version.version,
                        printable(each.version.tags.get(MlflowTag.PARTITION, ""))[:100],
                        "" if each.value is None else f"{each.value:.6g}",
                        each.unfit or ("promoted" if each.promotion else ""),
                    ),
                    strict=True,
                )
            )
        )
        for each in newest
    ]
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    return dg.MetadataValue.table(records=records, schema=schema)


def _doubt(decision: Decision) -> dg.MetadataValue | None:
    """Whether the best two were measured on the same data, as far as they say."""
    champion, runner_up = decision.champion, decision.runner_up
    if champion is None or runner_up is None or runner_up.run is None:
        return None
    warning = other_data(runner_up.run, champion.run)
    return dg.MetadataValue.text(printable(f"version {runner_up.version.version}: {warning}")) if warning else None


def _registered(registration: Registration, removed: list[str]) -> Mapping[str, dg.MetadataValue]:
    lists = {
        "registered": ", ".join(version.version for version in registration.versions),
        "not registered": "; ".join(registration.left_out)[:2000],
        "removed": ", ".join(removed),
    }
    return {key: dg.MetadataValue.text(printable(text)) for key, text in lists.items() if text}


def _link(url: str | None) -> dg.MetadataValue | None:
    return dg.MetadataValue.url(url) if url and url.startswith(("http://", "https://")) else None


def _commit(champion: Candidate) -> dg.MetadataValue | None:
    commit = champion.version.tags.get(MlflowTag.SOURCE_COMMIT)
    repository = champion.run.tags.get(MlflowTag.SOURCE_REPOSITORY) if champion.run else None
    page = commit_url(repository, commit) if repository and commit else None
    if page:
        return dg.MetadataValue.url(page)
    return dg.MetadataValue.text(printable(commit)[:100]) if commit else None


def _float(value: float | None, *, digits: int = 17) -> dg.MetadataValue | None:
    """A number with so many significant digits; 17 are all."""
    return None if value is None else dg.MetadataValue.float(float(f"{value:.{digits}g}"))
