"""A deployment that a person asks for: any model that MLflow keeps, to any target."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import dagster as dg

from orchestrator.errors import DeploymentError, SettingsError
from orchestrator.names import DagsterTag, MlflowTag
from orchestrator.pipeline.models.deployment import DeploymentRule, deployed_key, deployment_metadata
from orchestrator.pipeline.models.deployment_run import Deployment, deploy, release_of
from orchestrator.printable import printable
from orchestrator.resources.mlflow import Mlflow, StoredModel
from orchestrator.resources.targets import Holder, Target, TargetBlock
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HandHistory:
    """Lets a deployment by hand appear among those of the asset `P/deployed_model`.

    What went into the target of the pipeline is a materialisation; what failed, and what went elsewhere on the
    pipeline's behalf, is an observation: the asset is still what it was.

    Attributes:
        instance: Dagster's.
        by: who deploys.
        reason: why; empty: not said.
    """

    instance: dg.DagsterInstance
    by: str
    reason: str = ""

    def deployed(self, rule: DeploymentRule, mlflow: Mlflow, done: Deployment) -> None:
        """Record a deployment.

        Args:
            rule: of the pipeline on whose behalf.
            mlflow: for the links.
            done: what was done.
        """
        key = deployed_key(rule.pipeline)
        metadata = {**deployment_metadata(self.instance, key, mlflow, done), **self._words()}
        if done.place == rule.target().place:
            tags = {DagsterTag.DATA_VERSION: done.release.version}
            self._report(dg.AssetMaterialization(key, description=self._title, metadata=metadata, tags=tags))
        else:
            description = f"{self._title}, to another target than the pipeline's: {done.place}"
            self._report(dg.AssetObservation(key, description=printable(description)[:1000], metadata=metadata))

    def failed(self, rule: DeploymentRule, title: str, place: str, error: DeploymentError) -> None:
        """Record a deployment that failed; what was in use before still is.

        Args:
            rule: of the pipeline on whose behalf.
            title: what was to be deployed.
            place: the target.
            error: why it was not.
        """
        metadata = {"error": str(error), "target": place, "model": title}
        texts = {name: dg.MetadataValue.text(printable(text)[:2000]) for name, text in metadata.items()}
        description = f"{self._title} failed"
        observation = dg.AssetObservation(
            deployed_key(rule.pipeline), description=description, metadata={**texts, **self._words()}
        )
        self._report(observation)

    @property
    def _title(self) -> str:
        return f"Deployment by hand by {printable(self.by)[:200]}"

    def _words(self) -> Mapping[str, dg.MetadataValue]:
        words = {"deployed by": self.by, "reason": self.reason}
        return {name: dg.MetadataValue.text(printable(word)[:500]) for name, word in words.items() if word}

    def _report(self, event: dg.AssetMaterialization | dg.AssetObservation) -> None:
        try:
            self.instance.report_runless_asset_event(event)
        except Exception as error:  # noqa: BLE001 - of whatever storage; the target itself says what is in use
            _log.warning(f"Not recorded in the history of {event.asset_key.to_user_string()}: {error}")


def deploy_by_hand(
    uri: str,
    target: str,
    rules: Iterable[DeploymentRule],
    *,
    pipeline: str | None,
    take_over: bool,
    settings_of: Mapping[str, SettingsSource] = MappingProxyType({}),
    history: HandHistory | None = None,
) -> Deployment:
    """Put a model into use.

    Args:
        uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/m-…` or `runs:/ID/PATH`.
        target: a pipeline whose target is meant, or a target as JSON.
        rules: of all pipelines that have a deployment.
        pipeline: on whose behalf; None: the pipeline that is named as target, else the one that has trained the model.
        take_over: also where another pipeline's model is in use.
        settings_of: pipeline → its settings; one that is not there has those of the environment.
        history: gets what was done, and what failed, if the pipeline has a deployment; None: nobody does.

    Raises:
        SettingsError: there is no such pipeline, or no such target can be.
        DeploymentError: the model was not put into use.
        MlflowError: there is no such model.
    """
    known = {each.pipeline: each for each in rules}
    rule = None if target.lstrip().startswith("{") else _rule(target, known)
    settings = rule.settings if rule else settings_of.get(pipeline or "", SettingsSource(pipeline=pipeline or ""))
    place: Target = rule.target() if rule else TargetBlock.parse(target).open()
    with Mlflow(settings.read(MlflowSettings)) as mlflow:
        stored = mlflow.model_files.find(uri)
        deployment = settings.raw("ORCHESTRATOR_DEPLOYMENT") or socket.gethostname()
        holder = Holder(pipeline=pipeline or (rule.pipeline if rule else _trained_by(stored)), deployment=deployment)
        of_history = known.get(holder.pipeline)
        try:
            done = deploy(mlflow, stored, place, holder, take_over=take_over)
        except DeploymentError as error:
            if history and of_history:
                history.failed(of_history, release_of(stored, holder).title, place.place, error)
            raise
        if history and of_history:
            history.deployed(of_history, mlflow, done)
        return done


def _rule(pipeline: str, known: Mapping[str, DeploymentRule]) -> DeploymentRule:
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
