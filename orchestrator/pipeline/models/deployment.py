"""The asset `P/deployed_model`, in a job of its own: the champion, put into use in its target."""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets as objects.
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from orchestrator import names
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.pipeline.models.deployment_run import Deployment, deploy
from orchestrator.printable import printable
from orchestrator.resources.mlflow import Mlflow, MlflowResource
from orchestrator.resources.targets import Holder, Target, TargetBlock
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource

HISTORY = 10
"""Deployments that the history on the asset's page shows."""


class When(StrEnum):
    """Who has the champion deployed."""

    AUTOMATIC = "automatic"
    APPROVAL = "approval"


class DeploymentBlock(BaseModel):
    """What a defs.yaml says under `deployment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: When = Field(description="automatic: as soon as there is another champion; approval: when a person has it so")
    target: TargetBlock = Field(description="where the model is put into use")


@dataclass(frozen=True, kw_only=True)
class DeploymentRule:
    """How the models of a pipeline get into use.

    Attributes:
        model: the registered model's name.
        settings: of the pipeline; read when they are needed.
        block: when, and where to.
        after_champion: there is an asset `P/champion_model`; else somebody else sets the alias.
    """

    pipeline: str
    model: str
    settings: SettingsSource
    block: DeploymentBlock
    after_champion: bool = False

    def holder(self) -> Holder:
        """On whose behalf."""
        deployment = self.settings.raw("ORCHESTRATOR_DEPLOYMENT") or socket.gethostname()
        return Holder(pipeline=self.pipeline, deployment=deployment)

    def target(self) -> Target:
        """Where to."""
        return self.block.target.open()

    @contextmanager
    def mlflow(self, resource: MlflowResource) -> Iterator[Mlflow]:
        """The pipeline's MLflow."""
        with resource.connect(self.settings.read(MlflowSettings)) as connected:
            yield connected


class DeploymentConfig(dg.Config):
    """What the launchpad of a deployment asks for."""

    version: str = Field(
        default="",
        pattern=r"^[0-9]{0,9}$",
        description="the version that was approved; empty: the champion of the moment when the run begins",
    )


def deployed_key(pipeline: str) -> dg.AssetKey:
    """What deployments are recorded as."""
    return dg.AssetKey([pipeline, names.DEPLOYED_MODEL])


def deployed_model(rule: DeploymentRule) -> dg.AssetsDefinition:
    """Make the asset `P/deployed_model`.

    Args:
        rule: of the pipeline.
    """
    key = deployed_key(rule.pipeline)

    @dg.asset(
        name=names.DEPLOYED_MODEL,
        key_prefix=[rule.pipeline],
        group_name=rule.pipeline,
        deps=[dg.AssetKey([rule.pipeline, names.CHAMPION_MODEL])] if rule.after_champion else [],
        # The attempts' resource renews the lease of this run, too: a dead one is noticed.
        required_resource_keys={names.ResourceKey.MLFLOW, names.ResourceKey.ATTEMPTS},
        pool=names.deployment_job(rule.pipeline),
        check_specs=[
            dg.AssetCheckSpec(
                names.IN_USE, asset=key, description="Whether the target holds the champion; the sensor compares them."
            )
        ],
        description=f"The version of {rule.model} that is in use in {rule.target().place}.",
        kinds={"mlflow"},
    )
    def asset(context: dg.AssetExecutionContext, config: DeploymentConfig) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster takes `MaterializeResult[None]` for a tuple
        resource: MlflowResource = getattr(context.resources, names.ResourceKey.MLFLOW)
        try:
            with rule.mlflow(resource) as mlflow:
                version = _version(mlflow, rule, config)
                stored = mlflow.model_files.of_version(rule.model, version)
                done = deploy(mlflow, stored, rule.target(), rule.holder())
                return _result(context, mlflow, done)
        except OrchestratorError as error:
            raise dg.Failure(
                description=str(error), metadata={"kind": type(error).__name__}, allow_retries=False
            ) from error

    return asset


def _version(mlflow: Mlflow, rule: DeploymentRule, config: DeploymentConfig) -> str:
    champion = mlflow.model_files.version_at(rule.model, names.CHAMPION_ALIAS)
    if not config.version or config.version == champion:
        return champion
    if rule.block.when is When.AUTOMATIC:
        raise SettingsError(
            f"version {config.version} of {rule.model} is not the champion, which is version {champion} and would be "
            f"deployed again at once; `orchestrator promote {rule.pipeline} {config.version}` makes it the champion"
        )
    return config.version


def _result(context: dg.AssetExecutionContext, mlflow: Mlflow, done: Deployment) -> dg.MaterializeResult[None]:
    release = done.release
    champion = mlflow.model_files.version_at(release.model, names.CHAMPION_ALIAS)
    return dg.MaterializeResult(
        metadata=deployment_metadata(context.instance, context.asset_key, mlflow, done),
        data_version=dg.DataVersion(release.version),
        check_results=[in_use_result(champion=champion, in_use=release.version)],
    )


def in_use_result(*, champion: str, in_use: str) -> dg.AssetCheckResult:
    """What the check says: a warning while another version is in use than the champion.

    Args:
        champion: the version that the alias points to.
        in_use: the version that the target holds; empty: none.
    """
    same = champion == in_use
    return dg.AssetCheckResult(
        check_name=names.IN_USE,
        passed=same,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"champion": champion, "in use": in_use or "nothing"},
        description=None
        if champion == in_use
        else f"version {champion} is the champion, {in_use or 'nothing'} is in use",
    )


def deployment_metadata(
    instance: dg.DagsterInstance, key: dg.AssetKey, mlflow: Mlflow, done: Deployment
) -> Mapping[str, dg.MetadataValue]:
    """What Dagster shows of a deployment."""
    release, version, run = done.release, done.stored.version, done.stored.run
    page = mlflow.registry.url_of(version) if version else None
    run_page = mlflow.run_url(run) if run else None
    values: dict[str, dg.MetadataValue | None] = {
        "version": dg.MetadataValue.text(release.version),
        "model": dg.MetadataValue.url(page) if page else dg.MetadataValue.text(release.model),
        "MLflow run": dg.MetadataValue.url(run_page) if run_page else None,
        "build": _text(release.build),
        "commit": _text(release.commit),
        "target": _text(done.place),
        "before": _text(done.before.version if done.before else "nothing"),
        "megabytes": dg.MetadataValue.float(done.megabytes),
        "seconds": dg.MetadataValue.float(done.seconds),
    }
    known = {name: value for name, value in values.items() if value is not None}
    return {**known, "history": _history(instance, key, known)}


def _text(text: str) -> dg.MetadataValue | None:
    return dg.MetadataValue.text(printable(text)[:500]) if text else None


def _history(
    instance: dg.DagsterInstance, key: dg.AssetKey, present: Mapping[str, dg.MetadataValue]
) -> dg.MetadataValue:
    columns = ("version", "build", "commit", "before", "target", "deployed by")

    def record(at: datetime, metadata: Mapping[str, dg.MetadataValue], run_id: str) -> dg.TableRecord:
        values = {name: str(metadata[name].value) if name in metadata else "" for name in columns}
        return dg.TableRecord({"at": f"{at:%Y-%m-%d %H:%M} UTC", **values, "Dagster run": run_id[:8]})

    events = instance.fetch_materializations(key, limit=HISTORY - 1).records
    records = [record(datetime.now(UTC), present, "")]
    for event in events:
        found = event.asset_materialization
        if found is not None:
            records.append(record(datetime.fromtimestamp(event.timestamp, UTC), found.metadata, event.run_id))
    names_of = ("at", *columns, "Dagster run")
    return dg.MetadataValue.table(records=records, schema=dg.TableSchema([dg.TableColumn(name) for name in names_of]))
