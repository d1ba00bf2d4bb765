"""A person's word on the champion: promote a version, or roll back from the present one. Who and why stand as tags."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrator.errors import MlflowNotFound, ModelUnusable
from orchestrator.names import MlflowTag, VersionTag
from orchestrator.pipeline.models.champion import Candidate, Decision, Promotion, look, newest_build, settle
from orchestrator.pipeline.models.declared import ChampionRule
from orchestrator.resources.mlflow import Mlflow, ModelVersion, RegisteredModel

_log = logging.getLogger(__name__)


def promote(mlflow: Mlflow, rule: ChampionRule, number: str, *, by: str, reason: str, now: datetime) -> Decision:
    """Make a version the champion; it stays until a version of a newer build beats it.

    Whatever its checks say: that is a person's to decide. What had been rejected is not rejected any more.

    Args:
        mlflow: the server.
        rule: of the pipeline.
        number: the version.
        by: who.
        reason: why.
        now: the time.

    Raises:
        ModelUnusable: there is no such version.
        MlflowError: MLflow cannot be asked.
    """
    version = _version(mlflow, rule, number)
    candidates = look(mlflow.registry, mlflow, rule).candidates
    promotion = Promotion(at=now.isoformat(), after=newest_build(candidates), by=by, reason=reason)
    tags = {VersionTag.REJECTED: "", VersionTag.PROMOTED: promotion.text()}
    mlflow.registry.set_tags(version, tags)
    decision = settle(mlflow.registry, mlflow, rule)
    if decision.champion is None or decision.champion.version.version != version.version:
        other = decision.champion.version.version if decision.champion else "none"
        raise ModelUnusable(
            f"version {number} of {rule.model} is promoted, but version {other} is the champion: another one was "
            "promoted, or beat it, at this moment; look at `orchestrator models` and promote it again if need be"
        )
    return decision


def roll_back(mlflow: Mlflow, rule: ChampionRule, *, by: str, reason: str, now: datetime) -> Decision:
    """Leave the present champion, which is rejected until somebody promotes it, for the best of the others.

    Raises:
        ModelUnusable: there is no champion, or no other version may be it; then nothing is changed.
        MlflowError: MLflow cannot be asked.
    """
    present = look(mlflow.registry, mlflow, rule)
    if not present.was:
        raise ModelUnusable(f"{rule.model} has no champion to roll back from")
    following = look(mlflow.registry, mlflow, rule, rejecting=present.was)
    if following.champion is None:
        reasons = "; ".join(
            f"version {candidate.version.version}: {candidate.unfit}"
            for candidate in reversed(following.candidates)
            if candidate.version.version != present.was
        )
        raise ModelUnusable(
            f"version {present.was} of {rule.model} stays the champion, because no other may be it "
            f"({reasons or 'there is no other'}); `orchestrator promote` takes any version"
        )
    rejection = json.dumps({"by": by, "reason": reason, "at": now.isoformat()})
    mlflow.registry.set_tags(ModelVersion(rule.model, present.was), {VersionTag.REJECTED: rejection})
    return settle(mlflow.registry, mlflow, rule)


def overview(mlflow: Mlflow, rule: ChampionRule) -> list[Mapping[str, Any]]:
    """All versions of the registered model, the newest first, as `orchestrator models --json` prints them."""
    decision = look(mlflow.registry, mlflow, rule)
    registered = mlflow.registry.registered(rule.model) or RegisteredModel(name=rule.model)
    return [_entry(candidate, rule, registered) for candidate in reversed(decision.candidates)]


def _entry(candidate: Candidate, rule: ChampionRule, registered: RegisteredModel) -> Mapping[str, Any]:
    version, run = candidate.version, candidate.run
    return {
        "model": version.model,
        "version": version.version,
        "aliases": registered.aliases_of(version),
        "metrics": {key: _json_safe(value) for key, value in sorted(run.metrics.items())} if run else {},
        "build": version.tags.get(MlflowTag.PARTITION) or version.tags.get(MlflowTag.JENKINS_BUILD),
        "commit": version.tags.get(MlflowTag.SOURCE_COMMIT),
        "run_id": version.run_id,
        "pipeline": rule.pipeline,
        "checks": run.tags.get(MlflowTag.CHECKS) if run else None,
        "promoted": _word(version.tags.get(VersionTag.PROMOTED, "")),
        "rejected": _word(version.tags.get(VersionTag.REJECTED, "")),
        "remark": candidate.unfit,
    }


def _json_safe(value: float) -> float | None:
    """NaN and infinity are no JSON."""
    return value if value == value and abs(value) != float("inf") else None


def _word(text: str) -> Mapping[str, str] | None:
    """Who, why and when, as a tag has it; whoever may register may have written it."""
    try:
        fields = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return {"reason": text[:200]}
    if not isinstance(fields, dict):
        return {"reason": text[:200]} if text else None
    return {key: str(fields[key])[:500] for key in ("by", "reason", "at") if key in fields}


def _version(mlflow: Mlflow, rule: ChampionRule, number: str) -> ModelVersion:
    text = number.strip().removeprefix("v")
    if not text.isascii() or not text.isdigit():
        raise ModelUnusable(f"{number!r} is no version; `orchestrator models {rule.pipeline}` lists what there is")
    try:
        return mlflow.registry.version(rule.model, text)
    except MlflowNotFound as error:
        raise ModelUnusable(
            f"{rule.model} has no version {text}; `orchestrator models {rule.pipeline}` lists what there is ({error})"
        ) from error
