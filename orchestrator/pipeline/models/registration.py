"""Registers trained models: each run's once, with what it was made from; and removes old versions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.errors import MlflowError, MlflowNotFound
from orchestrator.names import MlflowTag, VersionTag
from orchestrator.pipeline.models.checks import evaluation_data
from orchestrator.pipeline.models.declared import ChampionRule
from orchestrator.resources.mlflow import Mlflow, ModelVersion, Run
from orchestrator.resources.mlflow.errors import CUT_OFF

MOST_DELETED = 50
"""Versions at once: the next decision goes on."""

_FROM_RUN = (
    MlflowTag.DEPLOYMENT,
    MlflowTag.PIPELINE,
    MlflowTag.PARTITION,
    MlflowTag.JENKINS_JOB,
    MlflowTag.JENKINS_BUILD,
    MlflowTag.JENKINS_TIMESTAMP,
    MlflowTag.JENKINS_URL,
    MlflowTag.DAGSTER_RUN,
    MlflowTag.SOURCE_COMMIT,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What became of the models that were to be registered.

    Attributes:
        versions: of those that were.
        left_out: why others were not, one sentence each.
    """

    versions: tuple[ModelVersion, ...] = ()
    left_out: tuple[str, ...] = ()


def register_all(mlflow: Mlflow, rule: ChampionRule, run_ids: Collection[str]) -> Registration:
    """Register the models of these runs.

    Args:
        mlflow: the server.
        rule: of the pipeline.
        run_ids: the MLflow runs of its trained models.

    Raises:
        MlflowError: MLflow cannot be asked, or does not take what it is told.
    """
    versions, left_out = list[ModelVersion](), list[str]()
    if run_ids:
        mlflow.registry.require_registered(rule.model)
    for run_id in run_ids:
        try:
            result = _register(mlflow, rule, run_id)
        except CUT_OFF:
            raise
        except MlflowError as error:  # of this one: somebody has deleted it, or its model
            result = f"MLflow run {run_id}: {error}"
        if isinstance(result, str):
            left_out.append(result)
            _log.warning(f"Not registered: {result}")
        else:
            versions.append(result)
            _log.info(f"Registered MLflow run {run_id} as version {result.version} of {rule.model}")
    return Registration(tuple(versions), tuple(left_out))


def _register(mlflow: Mlflow, rule: ChampionRule, run_id: str) -> ModelVersion | str:
    run = mlflow.run(run_id)
    if run.tags.get(MlflowTag.PIPELINE) != rule.pipeline:
        return f"MLflow run {run_id} is not of pipeline {rule.pipeline}"
    if MlflowTag.CHECKS not in run.tags:
        return f"MLflow run {run_id} was trained before there were checks: train its build again if it is wanted"
    model = mlflow.registry.model_of(run)
    if model is None:
        return f"MLflow run {run_id} has no model"
    return mlflow.registry.register(rule.model, model, tags=_tags(mlflow, run))


def _tags(mlflow: Mlflow, run: Run) -> dict[str, str]:
    tags = {key: run.tags[key] for key in _FROM_RUN if key in run.tags}
    root_id = run.tags.get(MlflowTag.TRAINING)
    if MlflowTag.SOURCE_COMMIT not in tags and root_id:
        try:
            root = mlflow.run(root_id, deleted_too=True)
            tags |= {key: root.tags[key] for key in (MlflowTag.SOURCE_COMMIT,) if key in root.tags}
        except MlflowNotFound as error:
            _log.warning(f"Version of MLflow run {run.id} will not say its commit: {error}")
    if data := evaluation_data(run):
        tags[VersionTag.EVALUATION_DATA] = data
    return tags


def superfluous(
    versions: Sequence[ModelVersion], *, keep: int, pipeline: str, aliased: Collection[str], needed: Collection[str]
) -> list[ModelVersion]:
    """The versions that nobody needs any more, the oldest first. Pure.

    Args:
        versions: all of the registered model.
        keep: so many of the newest stay; 0: all.
        pipeline: versions that others have registered are theirs.
        aliased: versions that an alias points to.
        needed: others that stay.
    """
    if not keep:
        return []
    ours = [version for version in versions if version.tags.get(MlflowTag.PIPELINE) == pipeline]
    ours.sort(key=lambda version: version.number)
    return [
        version
        for version in ours[:-keep]
        if version.version not in aliased
        and version.version not in needed
        and not any(value for name, value in version.tags.items() if name.startswith(VersionTag.DEPLOYED_TO))
        and not version.tags.get(VersionTag.PROMOTED)
        and not version.tags.get(VersionTag.REJECTED)
    ]


def remove_old(mlflow: Mlflow, rule: ChampionRule, *, keep: int, needed: Collection[str]) -> list[str]:
    """Remove versions as KEEP_VERSIONS says; what cannot be removed stays, with a warning.

    Returns:
        The versions that are gone.
    """
    removed: list[str] = []
    try:
        versions = mlflow.registry.versions(rule.model)
        registered = mlflow.registry.registered(rule.model)
        aliased = set(registered.aliases.values()) if registered else set()
        old = superfluous(versions, keep=keep, pipeline=rule.pipeline, aliased=aliased, needed=needed)
        for version in old[:MOST_DELETED]:
            mlflow.registry.delete_version(version)
            removed.append(version.version)
    except MlflowError as error:
        _log.warning(f"Not removed old versions of {rule.model} (KEEP_VERSIONS): {error}")
    if removed:
        _log.info(f"Removed versions {', '.join(removed)} of {rule.model}, as KEEP_VERSIONS={keep} says")
    return removed
