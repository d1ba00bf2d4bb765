"""A deployment that a person asks for: any model that MLflow keeps, to any target."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from orchestrator.errors import SettingsError
from orchestrator.names import MlflowTag
from orchestrator.pipeline.models.deployment import DeploymentRule
from orchestrator.pipeline.models.deployment_run import Deployment, deploy
from orchestrator.resources.mlflow import Mlflow, StoredModel
from orchestrator.resources.targets import Holder, Target, TargetBlock
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource


def deploy_by_hand(
    uri: str,
    target: str,
    rules: Iterable[DeploymentRule],
    *,
    pipeline: str | None,
    take_over: bool,
    settings_of: Mapping[str, SettingsSource] = MappingProxyType({}),
) -> Deployment:
    """Put a model into use.

    Args:
        uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/m-…` or `runs:/ID/PATH`.
        target: a pipeline whose target is meant, or a target as JSON.
        rules: of all pipelines that have a deployment.
        pipeline: on whose behalf; None: the pipeline that is named as target, else the one that has trained the model.
        take_over: also where another pipeline's model is in use.
        settings_of: pipeline → its settings; one that is not there has those of the environment.

    Raises:
        SettingsError: there is no such pipeline, or no such target can be.
        DeploymentError: the model was not put into use.
        MlflowError: there is no such model.
    """
    rule = None if target.lstrip().startswith("{") else _rule(target, rules)
    settings = rule.settings if rule else settings_of.get(pipeline or "", SettingsSource(pipeline=pipeline or ""))
    place: Target = rule.target() if rule else TargetBlock.parse(target).open()
    with Mlflow(settings.read(MlflowSettings)) as mlflow:
        stored = mlflow.model_files.find(uri)
        deployment = settings.raw("ORCHESTRATOR_DEPLOYMENT") or socket.gethostname()
        holder = Holder(pipeline=pipeline or (rule.pipeline if rule else _trained_by(stored)), deployment=deployment)
        return deploy(mlflow, stored, place, holder, take_over=take_over)


def _rule(pipeline: str, rules: Iterable[DeploymentRule]) -> DeploymentRule:
    known = {rule.pipeline: rule for rule in rules}
    if pipeline not in known:
        others = f"those that have one: {', '.join(sorted(known))}" if known else "no pipeline has one"
        raise SettingsError(
            f"--target {pipeline!r} is neither JSON nor a pipeline with a `deployment` in its defs.yaml ({others})"
        )
    return known[pipeline]


def _trained_by(stored: StoredModel) -> str:
    tags = stored.run.tags if stored.run else {}
    pipeline = tags.get(MlflowTag.PIPELINE)
    if not pipeline:
        raise SettingsError("the model's run does not say which pipeline has trained it: name one with --pipeline")
    return pipeline
