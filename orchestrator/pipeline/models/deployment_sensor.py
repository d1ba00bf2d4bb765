"""The sensor that compares the champion with what is in use, and has it deployed, or says that it waits for approval.

Both are read at each tick, from MLflow and from the target, so that a champion that was promoted, a rollback and a
target that has lost its model are all found the same way.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import set_pool_limit
from orchestrator.errors import MlflowNotFound, SettingsError
from orchestrator.names import DagsterTag, VersionTag
from orchestrator.pipeline.models.champion_asset import DECIDED_UP_TO, champion_key, decided_up_to
from orchestrator.pipeline.models.deployment import DeploymentRule, When, deployed_key, deployed_model, in_use_result
from orchestrator.pipeline.models.deployment_cursor import DeploymentCursor
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow, MlflowResource, ModelVersion
from orchestrator.resources.targets.release import require_holder

if TYPE_CHECKING:
    from orchestrator.dagster_instance import UnresolvedAssetJobDefinition

_log = logging.getLogger(__name__)

PAUSE = timedelta(minutes=5)
"""After a deployment that failed because of something else than the model; it doubles each time."""

LONGEST_PAUSE = timedelta(hours=2)
MOST_TRIES = 10

_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_UNFINISHED = tuple(status for status in dg.DagsterRunStatus if status not in _OVER)


def deployment_definitions(rule: DeploymentRule) -> dg.Definitions:
    """What a pipeline has in addition that has a deployment: the asset, its job and the sensor."""
    asset = deployed_model(rule)
    job = dg.define_asset_job(
        names.deployment_job(rule.pipeline),
        selection=[asset],
        description=f"Puts the champion of {rule.pipeline} into use in {rule.target().place}.",
        executor_def=dg.in_process_executor,
        tags={names.DagsterTag.RETRY_STRATEGY: "ALL_STEPS", names.DagsterTag.RETRY_ON_OP_FAILURE: "false"},
    )
    return dg.Definitions(assets=[asset], jobs=[job], sensors=[deployment_sensor(rule, job)])


def deployment_sensor(
    rule: DeploymentRule, job: UnresolvedAssetJobDefinition, *, interval_seconds: int = 60
) -> dg.SensorDefinition:
    """The sensor of a pipeline's deployment.

    Args:
        rule: of the pipeline.
        job: deploys the champion.
        interval_seconds: least time between two ticks.
    """
    deploys = "Deploys the champion when the target holds another model."
    tells = "Says when the target holds another model than the champion; a person deploys it."

    @dg.sensor(
        name=names.deployment_sensor(rule.pipeline),
        target=job,
        minimum_interval_seconds=interval_seconds,
        required_resource_keys={names.ResourceKey.MLFLOW},
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=deploys if rule.block.when is When.AUTOMATIC else tells,
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        with contextlib.suppress(SettingsError):  # a storage without limits; the target itself takes one at a time
            set_pool_limit(context.instance, pool=names.deployment_job(rule.pipeline), limit=1)
        resource: MlflowResource = getattr(context.resources, names.ResourceKey.MLFLOW)
        recorded = _recorded_champion(context.instance, rule)  # before the alias, which a decision moves first
        with rule.mlflow(resource) as mlflow:
            asked = mlflow.with_policy(retry.JANITOR_MLFLOW)
            found = compare(asked, rule)
            page = asked.registry.url_of(found.champion) if found else None
        if found is None:
            return dg.SkipReason(f"{rule.model} has no champion yet.")
        request = next_run(context.instance, rule, found, now=datetime.now(UTC))
        events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        if recorded not in (None, found.champion.version):
            events.append(_moved_champion(context.instance, rule, found.champion, page))
        if context.cursor != found.cursor:
            events.append(_evaluation(rule, found))
            if isinstance(request, dg.SkipReason) and not found.same:
                _log.warning(f"{rule.pipeline}: {request.skip_message} (in the UI: {page_of(rule.pipeline)})")
        return dg.SensorResult(
            run_requests=[request] if isinstance(request, dg.RunRequest) else [],
            skip_reason=request if isinstance(request, dg.SkipReason) else None,
            asset_events=events,
            cursor=found.cursor,
        )

    return evaluate


@dataclass(frozen=True, kw_only=True)
class TargetComparison:
    """What is the champion, and what is in use.

    Attributes:
        champion: the version that the alias points to.
        in_use: the version in the target; empty: none.
        same: they are the same.
        lost: the version that was in use when the target lost it, which a host does that is started anew; else empty.
    """

    champion: ModelVersion
    in_use: str
    same: bool
    lost: str = ""

    @property
    def cursor(self) -> str:
        """Both, to notice a change."""
        return DeploymentCursor(champion=self.champion.version, in_use=self.in_use).dump()


def compare(mlflow: Mlflow, rule: DeploymentRule) -> TargetComparison | None:
    """Ask MLflow and the target; None: there is no champion.

    Raises:
        TargetHeld: another pipeline's model is in the target.
    """
    try:
        number = mlflow.model_files.version_at(rule.model, names.CHAMPION_ALIAS)
        champion = mlflow.model_files.of_version(rule.model, number).version
    except MlflowNotFound:
        return None
    if champion is None:
        return None
    target = rule.target()
    release = target.state()
    require_holder(release, rule.holder(), place=target.place, take_over=False)
    same = release is not None and (release.model, release.version) == (rule.model, champion.version)
    same = same and release is not None and release.run_id in ("", champion.run_id)
    lost = target.lost() if release is None else None
    require_holder(lost, rule.holder(), place=target.place, take_over=False)
    return TargetComparison(
        champion=champion,
        in_use=release.version if release else "",
        same=same,
        lost=lost.version if lost is not None and lost.model == rule.model else "",
    )


def next_run(
    instance: dg.DagsterInstance, rule: DeploymentRule, found: TargetComparison, *, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """What is to be launched now."""
    version = found.champion.version
    if found.same:
        return dg.SkipReason(f"Version {version} of {rule.model} is in use.")
    difference = f"version {version} of {rule.model} is the champion, and {found.in_use or 'nothing'} is in use"
    config: dict[str, object] = {}
    if rule.block.when is When.APPROVAL:
        if not found.lost:
            return dg.SkipReason(
                f"Awaiting approval: {difference}; materialize {deployed_key(rule.pipeline).to_user_string()}"
            )
        # That one was approved, whatever is the champion now.
        version = found.lost
        op = "__".join(deployed_key(rule.pipeline).path)
        config = {"ops": {op: {"config": {"version": version}}}}
    tags = found.champion.tags
    if not config and tags.get(VersionTag.DEPLOYMENT_FAILED) and tags.get(VersionTag.REJECTED):
        return dg.SkipReason(f"Version {version} of {rule.model} could not be put into use, and waits to be promoted.")
    job = names.deployment_job(rule.pipeline)
    if instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_UNFINISHED), limit=1):
        return dg.SkipReason(f"A deployment is under way: {difference}.")
    need = {names.RunTag.MODEL_VERSION: version}
    tries = instance.get_run_records(dg.RunsFilter(job_name=job), limit=MOST_TRIES)
    failures = 0
    for record in tries:  # the newest first
        run = record.dagster_run
        if run.status == dg.DagsterRunStatus.SUCCESS or run.tags.get(names.RunTag.MODEL_VERSION) != version:
            break
        failures += 1
    if failures:
        last = tries[0]
        ended = datetime.fromtimestamp(last.end_time, UTC) if last.end_time else now
        due = ended + min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        if now < due:
            return dg.SkipReason(
                f"Run {last.dagster_run.run_id[:8]} failed: {difference}; it is tried again at {due:%H:%M} UTC."
            )
    return dg.RunRequest(tags=need, run_config=config)


def page_of(pipeline: str) -> str:
    """The path of the asset's page in Dagster's UI, where a person materializes it."""
    return "/".join(("/assets", *deployed_key(pipeline).path))


def _recorded_champion(instance: dg.DagsterInstance, rule: DeploymentRule) -> str | None:
    """The version that `P/champion_model` shows; None: there was no decision, one is under way, or it is no asset."""
    if not rule.after_champion:
        return None
    runs = dg.RunsFilter(job_name=names.champion_job(rule.pipeline), statuses=_UNFINISHED)
    if instance.get_run_records(runs, limit=1):
        return None
    records = instance.fetch_materializations(champion_key(rule.pipeline), limit=1).records
    event = records[0].asset_materialization if records else None
    return (event.tags or {}).get(DagsterTag.DATA_VERSION, "") if event else None


def _moved_champion(
    instance: dg.DagsterInstance, rule: DeploymentRule, champion: ModelVersion, page: str | None
) -> dg.AssetMaterialization:
    """Lets the asset show an alias that was moved without a decision: by a person, or because a deployment failed."""
    sentence = f"version {champion.version} of {rule.model} is the champion: promoted, rolled back to, or restored"
    return dg.AssetMaterialization(
        champion_key(rule.pipeline),
        description="The alias was moved without a decision",
        metadata={
            "champion": dg.MetadataValue.text(sentence),
            "version": dg.MetadataValue.text(champion.version),
            "model": dg.MetadataValue.url(page) if page else dg.MetadataValue.text(rule.model),
            "MLflow run ID": dg.MetadataValue.text(champion.run_id),
            DECIDED_UP_TO: dg.MetadataValue.int(decided_up_to(instance, rule.pipeline)),
        },
        tags={DagsterTag.DATA_VERSION: champion.version},
    )


def _link(rule: DeploymentRule) -> dg.MetadataValue:
    return dg.MetadataValue.url(page_of(rule.pipeline))


def _evaluation(rule: DeploymentRule, found: TargetComparison) -> dg.AssetCheckEvaluation:
    champion = found.champion.version
    result = in_use_result(champion=champion, in_use=found.in_use if found.in_use != champion or found.same else "")
    return dg.AssetCheckEvaluation(
        asset_key=deployed_key(rule.pipeline),
        check_name=names.IN_USE,
        passed=found.same,
        metadata={**result.metadata, **({} if found.same else {"materialize": _link(rule)})},
        severity=dg.AssetCheckSeverity.WARN,
        description=result.description,
    )
