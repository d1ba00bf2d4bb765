"""Which version of the registered model is the champion: the best of all that may be it.

Several writers may decide at the same time, and MLflow's aliases are not compare-and-set. So each registers first,
then sets the alias, reads everything again, and repeats until what it reads agrees: whoever writes last has read all
that was registered before. There is no lock, and Dagster's pools would let one training at a time through.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator import names
from orchestrator.errors import MlflowError, MlflowNotFound
from orchestrator.names import MlflowTag, VersionTag
from orchestrator.pipeline.models.checks import finite
from orchestrator.pipeline.models.declared import ChampionRule, Goal
from orchestrator.resources.mlflow import ModelVersion, RegisteredModel, Run

MOST_ROUNDS = 50
"""More writers than this at the same moment are not of this world."""

MOST_COMPARED = 1000
"""Versions whose runs are read: the newest, and those with an alias."""

_log = logging.getLogger(__name__)


class RunReader(Protocol):
    """What reads MLflow runs: the client, or a test's."""

    def run(self, run_id: str, *, deleted_too: bool = False) -> Run:
        """Read a run."""


class VersionStore(Protocol):
    """What holds the versions: MLflow's registry, or a test's."""

    def registered(self, name: str) -> RegisteredModel | None:
        """A registered model and its aliases."""

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of it."""

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Let an alias point to a version."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A person's word that a version is to be the champion.

    Attributes:
        at: ISO 8601, UTC; of several promotions the latest counts.
        after: the timestamp of the newest build of then: what is newer may beat it.
    """

    at: str
    after: int
    by: str = ""
    reason: str = ""

    @classmethod
    def read(cls, text: str) -> Promotion | None:
        """As a version's tag has it; None: there is none, or it cannot be read."""
        try:
            fields: dict[str, object] = json.loads(text or "{}")
            return cls(
                at=datetime.fromisoformat(str(fields["at"])).isoformat(),
                after=int(str(fields["after"])),
                by=str(fields.get("by", "")),
                reason=str(fields.get("reason", "")),
            )
        except (ValueError, TypeError, LookupError, RecursionError, AttributeError, OverflowError):
            return None

    def text(self) -> str:
        """For the tag."""
        return json.dumps({"by": self.by, "reason": self.reason, "at": self.at, "after": self.after})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version, and what is known of it.

    Attributes:
        value: of the metric that decides; None: there is none that could be compared.
        built_at: the timestamp of its build, in milliseconds; 0: unknown.
        unfit: why it may not become the champion, in a few words; empty: it may.
        promotion: a person's word, unless it was taken back.
    """

    version: ModelVersion
    run: Run | None = None
    value: float | None = None
    built_at: int = 0
    unfit: str = ""
    promotion: Promotion | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the champion is.

    Attributes:
        champion: None: no version may be it.
        runner_up: the best of the others that may be it.
        was: the version that the alias pointed to before; empty: none.
        candidates: all that were looked at.
    """

    champion: Candidate | None
    runner_up: Candidate | None = None
    was: str = ""
    candidates: Sequence[Candidate] = ()

    @property
    def changed(self) -> bool:
        """Whether the champion is another one than before."""
        return self.champion is not None and self.champion.version.version != self.was


def decide(candidates: Sequence[Candidate], goal: Goal, *, was: str = "") -> Decision:
    """The best of those that may be it, and the older version of equal ones. Pure.

    A version that a person has promoted stays until a version of a newer build beats it.

    Args:
        candidates: all versions.
        goal: which value is better.
        was: the version that the alias points to.
    """
    ranked = sorted(candidates, key=lambda candidate: candidate.version.number)
    promoted = max(
        (candidate for candidate in ranked if candidate.promotion is not None),
        key=lambda candidate: (candidate.promotion.at if candidate.promotion else "", candidate.version.number),
        default=None,
    )
    fit = [candidate for candidate in ranked if not candidate.unfit]
    if promoted is not None and promoted.promotion is not None:
        newer = [candidate for candidate in fit if candidate.built_at > promoted.promotion.after]
        fit = [promoted, *(candidate for candidate in newer if candidate is not promoted)]
    best = _best(fit, goal)
    others = [candidate for candidate in ranked if not candidate.unfit and candidate is not best]
    return Decision(champion=best, runner_up=_best(others, goal), was=was, candidates=tuple(ranked))


def _best(candidates: Sequence[Candidate], goal: Goal) -> Candidate | None:
    best: Candidate | None = None
    for candidate in candidates:
        if best is None or _beats(candidate, best, goal):
            best = candidate
    return best


def _beats(candidate: Candidate, best: Candidate, goal: Goal) -> bool:
    if candidate.value is None:
        return False
    if best.value is None:
        return True
    gain = goal.gain(candidate.value, best.value)
    return gain > 0 or (gain == 0 and candidate.version.number < best.version.number)


def settle(store: VersionStore, runs: RunReader, rule: ChampionRule, *, rejecting: str = "") -> Decision:
    """Choose the champion, and let the alias point to it; returns once what is read agrees.

    Args:
        store: the registry.
        runs: reads the runs of versions.
        rule: of the pipeline.
        rejecting: a version that is not to be it; its tag is set by the caller.

    Raises:
        MlflowError: MLflow cannot be asked, or others change the champion all the time.
    """
    known: dict[str, Run | None] = {}
    first: str | None = None
    for _ in range(MOST_ROUNDS):
        decision = look(store, runs, rule, known=known, rejecting=rejecting)
        first = decision.was if first is None else first
        if decision.champion is None or not decision.changed:
            return Decision(
                champion=decision.champion, runner_up=decision.runner_up, was=first, candidates=decision.candidates
            )
        store.set_alias(decision.champion.version, names.CHAMPION_ALIAS)
    raise MlflowError(f"others change the champion of {rule.model} all the time; look at who sets its alias")


def look(
    store: VersionStore,
    runs: RunReader,
    rule: ChampionRule,
    *,
    known: dict[str, Run | None] | None = None,
    rejecting: str = "",
) -> Decision:
    """What the champion would be; nothing is changed. Arguments as in `settle`, and the runs that are known by now."""
    cache: dict[str, Run | None] = {} if known is None else known
    # The alias after the versions: who sets it to one that is not among these makes us read again.
    versions = store.versions(rule.model)
    registered = store.registered(rule.model) or RegisteredModel(name=rule.model)
    was = registered.aliases.get(names.CHAMPION_ALIAS, "")
    compared = _compared(versions, registered)
    firsts: dict[str, str] = {}
    for version in compared:
        firsts.setdefault(version.run_id, version.version)
    candidates = [
        _candidate(
            version,
            _read(runs, version.run_id, cache),
            rule,
            is_champion=version.version == was,
            is_double=bool(version.run_id) and firsts[version.run_id] != version.version,
            rejected=version.version == rejecting,
        )
        for version in compared
    ]
    return decide(candidates, rule.goal, was=was)


def _compared(versions: Sequence[ModelVersion], registered: RegisteredModel) -> list[ModelVersion]:
    if len(versions) <= MOST_COMPARED:
        return list(versions)
    _log.warning(f"Compared the newest {MOST_COMPARED} of {len(versions)} versions of {registered.name} only")
    aliased = set(registered.aliases.values())
    older = [version for version in versions[:-MOST_COMPARED] if version.version in aliased]
    return [*older, *versions[-MOST_COMPARED:]]


def _read(runs: RunReader, run_id: str, known: dict[str, Run | None]) -> Run | None:
    if run_id and run_id not in known:
        try:
            known[run_id] = runs.run(run_id, deleted_too=True)
        except MlflowNotFound:
            known[run_id] = None
    return known.get(run_id)


def _candidate(
    version: ModelVersion, run: Run | None, rule: ChampionRule, *, is_champion: bool, is_double: bool, rejected: bool
) -> Candidate:
    value = finite(run, rule.metric) if run else None
    rejected = rejected or bool(version.tags.get(VersionTag.REJECTED))
    promotion = None if rejected else Promotion.read(version.tags.get(VersionTag.PROMOTED, ""))
    tags: Mapping[str, str] = run.tags if run else {}
    verdict = tags.get(MlflowTag.CHECKS, "")
    # What somebody made the champion before there were checks stays until it is beaten.
    unchecked = verdict != "passed" and not (is_champion and not verdict)
    reasons = {
        "rejected": rejected,
        "of a run that has an older version": is_double,
        "its run is not known any more": run is None,
        "its run was deleted": run is not None and not run.active and not is_champion,
        "its run did not end well": run is not None and run.status != "FINISHED",
        f"has no {rule.metric}": value is None and not is_champion,
        "an experiment": bool(tags.get(MlflowTag.EXPERIMENT)) and tags.get(MlflowTag.MAY_BE_CHAMPION) != "true",
        "checks failed" if verdict == "failed" else "not checked": unchecked,
    }
    unfit = next((reason for reason, holds in reasons.items() if holds), "")
    built_at = _number(version.tags.get(MlflowTag.JENKINS_TIMESTAMP) or tags.get(MlflowTag.JENKINS_TIMESTAMP, ""))
    return Candidate(version=version, run=run, value=value, built_at=built_at, unfit=unfit, promotion=promotion)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0


def newest_build(candidates: Iterable[Candidate]) -> int:
    """The timestamp of the newest build among them."""
    return max((candidate.built_at for candidate in candidates), default=0)
