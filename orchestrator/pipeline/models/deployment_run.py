"""One deployment: a model's files from MLflow into a target, and what is noted at its version."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator import names
from orchestrator.errors import DeploymentError, DeploymentFailed, MlflowError, MlflowNotFound, OrchestratorError
from orchestrator.names import MlflowTag, VersionTag
from orchestrator.resources.mlflow import Mlflow, ModelVersion, StoredModel
from orchestrator.resources.targets import Holder, ModelFolder, Release, Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model that was put into use.

    Attributes:
        release: what is in use now.
        before: what was; None: nothing.
        place: the target.
        megabytes: of its files together.
        seconds: how long it took.
        stored: the model in MLflow.
    """

    release: Release
    before: Release | None
    place: str
    megabytes: float
    seconds: float
    stored: StoredModel


def deploy(
    mlflow: Mlflow, stored: StoredModel, target: Target, holder: Holder, *, take_over: bool = False
) -> Deployment:
    """Put a model into use.

    What does not work there is marked at its version, and the alias `champion` names again what the target holds.

    Args:
        mlflow: where the model is.
        stored: the model.
        target: where to.
        holder: on whose behalf.
        take_over: also where another pipeline's model is in use.

    Raises:
        DeploymentFailed: because of the model; what was in use before still is.
        DeploymentError: because of the target; likewise.
        MlflowError: the model's files cannot be had.
    """
    started = time.monotonic()
    release = release_of(stored, holder)
    _log.info(f"Deploying {release.title} to {target.place}")
    with tempfile.TemporaryDirectory(prefix="orchestrator-model-") as folder:
        try:
            mlflow.model_files.fetch(stored.model, Path(folder))
            model = ModelFolder.of(Path(folder))
        except OSError as error:
            raise DeploymentError(
                f"the files of {release.title} cannot be kept in {folder} ({error.strerror or error}): "
                "make room there, or set TMPDIR to a folder that has it"
            ) from error
        try:
            before = target.deploy(release, model, take_over=take_over)
        except DeploymentFailed as error:
            _note_failure(mlflow, stored, target, str(error))
            raise
    if stored.version is not None and stored.version.tags.get(VersionTag.DEPLOYMENT_FAILED):
        mlflow.registry.set_tags(stored.version, {VersionTag.DEPLOYMENT_FAILED: ""})
    _note_place(mlflow, stored, before, target)
    return Deployment(
        release=release,
        before=before,
        place=target.place,
        megabytes=model.size / 1e6,
        seconds=time.monotonic() - started,
        stored=stored,
    )


def release_of(stored: StoredModel, holder: Holder) -> Release:
    """What a model is called in a target."""
    run, version = stored.run, stored.version
    tags = {**(run.tags if run else {}), **(version.tags if version else {})}
    return Release(
        model=version.model if version else "",
        version=version.version if version else stored.model.id or stored.model.run_id,
        run_id=stored.model.run_id or (run.id if run else ""),
        build=tags.get(MlflowTag.JENKINS_BUILD, ""),
        commit=tags.get(MlflowTag.SOURCE_COMMIT, ""),
        pipeline=holder.pipeline,
        deployment=holder.deployment,
    )


def _note_place(mlflow: Mlflow, stored: StoredModel, before: Release | None, target: Target) -> None:
    """Let nobody remove a version that is in use, wherever that is; see KEEP_VERSIONS."""
    tag = f"{VersionTag.DEPLOYED_TO}{hashlib.sha256(target.place.encode()).hexdigest()[:12]}"
    version = stored.version
    former = ModelVersion(before.model, before.version) if before is not None and before.model else None
    try:
        if version is not None:
            mlflow.registry.set_tags(version, {tag: target.place[:500]})
        if former and (version is None or (former.model, former.version) != (version.model, version.version)):
            with contextlib.suppress(MlflowNotFound):  # somebody has deleted it
                mlflow.registry.set_tags(former, {tag: ""})
    except MlflowError as error:
        _log.warning(f"Could not note at the versions of {target.place} which one is in use there: {error}")


def _note_failure(mlflow: Mlflow, stored: StoredModel, target: Target, reason: str) -> None:
    """Mark the version, so that it is chosen no more, and let the alias name what is in use.

    What cannot be noted is logged, because the failure itself is what has to be heard of.
    """
    version = stored.version
    if version is None:
        return
    word = {"by": "deployment", "reason": reason[:2000], "at": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps({**word, "target": target.place})
    try:
        mlflow.registry.set_tags(version, {VersionTag.DEPLOYMENT_FAILED: text, VersionTag.REJECTED: text})
        in_use = target.state()
        registered = mlflow.registry.registered(version.model)
        alias = registered.aliases.get(names.CHAMPION_ALIAS) if registered else None
        if in_use is None or in_use.model != version.model or alias != version.version:
            return
        back = mlflow.model_files.of_version(in_use.model, in_use.version).version
        if back is not None and not back.tags.get(VersionTag.REJECTED):
            mlflow.registry.set_alias(back, names.CHAMPION_ALIAS)
            _log.warning(f"Made version {back.version} of {back.model} the champion again: it is what is in use")
    except OrchestratorError as error:
        _log.warning(f"Could not note at version {version.version} of {version.model} that it failed: {error}")
