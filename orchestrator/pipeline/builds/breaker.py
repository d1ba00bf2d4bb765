"""Circuit breaker: builds that fail alike before their training begins are not launched one after the other.

Nothing of it is kept in memory: the runs themselves say how they ended (`names.RunTag.FAILED_EARLY`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from orchestrator import dagster_instance, names
from orchestrator.errors import BuildBusy, BuildUnusable, LaunchesPaused, OrchestratorError
from orchestrator.pipeline.builds.signature import Signer
from orchestrator.settings import variables
from orchestrator.settings.groups import all_settings
from orchestrator.settings.source import SettingsSource

ALIKE = 3
"""So many failures in a row, of the same kind, with the same settings, open the breaker."""

LOOKED_AT = 20
"""So many of the newest runs are looked at."""

OF_ONE_BUILD = (BuildUnusable, BuildBusy)
"""What is wrong with one build says nothing of the next."""

_OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run_id: Dagster's.
        succeeded: whether it ended well.
        kind: of its failure, and the settings' fingerprint; None: it got as far as the training.
        ended: when.
    """

    run_id: str
    succeeded: bool
    kind: str | None
    ended: datetime


@dataclass(frozen=True)
class Pause:
    """Launches wait.

    Attributes:
        kind: of the failures.
        count: how many in a row.
        run_id: the last of them.
        until: when the next build is tried.
    """

    kind: str
    count: int
    run_id: str
    until: datetime

    def __str__(self) -> str:
        return (
            f"launches are paused, because the last {self.count} builds failed alike before their training began "
            f"({self.kind}; run {self.run_id[:8]} says why). The next new build is tried after "
            f"{self.until:%Y-%m-%d %H:%M} UTC; a success, such as of a run that is launched by hand, or changed "
            "settings end the pause. No build is lost"
        )


def pause_of(outcomes: Sequence[Outcome], *, fingerprint: str, minutes: float) -> Pause | None:
    """Decide whether to launch.

    Args:
        outcomes: of the runs that have ended, the newest first.
        fingerprint: of the settings now.
        minutes: between two tries while it is paused; 0: never pause.
    """
    if not outcomes or outcomes[0].kind is None or not minutes:
        return None
    first = outcomes[0]
    alike = 0
    for outcome in outcomes:
        if outcome.succeeded or outcome.kind != first.kind:
            break
        alike += 1
    kind, _, settings = (first.kind or "").partition(" ")
    if alike < ALIKE or settings != fingerprint:
        return None
    return Pause(kind, alike, first.run_id, first.ended + timedelta(minutes=minutes))


def require_closed(
    instance: dg.DagsterInstance, name: str, settings: SettingsSource, *, minutes: float, now: datetime | None = None
) -> Pause | None:
    """Find out whether builds may be launched.

    Returns:
        None: they may. A pause: one may, to see whether the cause is gone.

    Raises:
        LaunchesPaused: none may.
    """
    now = now or datetime.now(UTC)
    records = instance.get_run_records(dg.RunsFilter(job_name=names.training_job(name)), limit=LOOKED_AT)
    ended = [_outcome(record) for record in records if record.dagster_run.status in _OVER]
    pause = pause_of(ended, fingerprint=fingerprint_of(instance, name, settings), minutes=minutes) if ended else None
    if pause is None or _succeeded_since(instance, name, ended[0]):
        return None
    is_tried = any(record.dagster_run.status not in _OVER for record in records)
    if is_tried or now < pause.until:
        raise LaunchesPaused(f"Pipeline {name}: {pause}.")
    return pause


@contextmanager
def early_failures_noted(
    instance: dg.DagsterInstance, run_id: str, name: str, settings: SettingsSource
) -> Iterator[None]:
    """Note on its run that it failed before its training began, and how."""
    try:
        yield
    except OF_ONE_BUILD:
        raise
    except OrchestratorError as error:
        try:
            kind = f"{type(error).__name__} {fingerprint_of(instance, name, settings)}"
            # With the run's ID, because Dagster copies tags to a run that tries it again.
            dagster_instance.add_run_tags(instance, run_id, {names.RunTag.FAILED_EARLY: f"{kind} {run_id}"})
        except Exception as fault:  # noqa: BLE001 - the failure itself counts, which follows
            _log.warning(f"Could not note that run {run_id} failed before its training began: {fault}")
        raise


def fingerprint_of(instance: dg.DagsterInstance, name: str, settings: SettingsSource) -> str:
    """What changes when any setting of the pipeline does, and tells nothing of them."""
    texts = settings.variables(sorted({*all_settings(), *variables.AWS}))
    key = Signer.of(instance, name).key
    return hmac.new(key, json.dumps(sorted(texts.items())).encode(), hashlib.sha256).hexdigest()[:16]


def _outcome(record: dg.RunRecord) -> Outcome:
    run = record.dagster_run
    kind, _, run_id = run.tags.get(names.RunTag.FAILED_EARLY, "").rpartition(" ")
    return Outcome(
        run_id=run.run_id,
        succeeded=run.status == dg.DagsterRunStatus.SUCCESS,
        kind=kind if run_id == run.run_id and run.status == dg.DagsterRunStatus.FAILURE else None,
        ended=datetime.fromtimestamp(record.end_time, UTC) if record.end_time else record.update_timestamp,
    )


def _succeeded_since(instance: dg.DagsterInstance, name: str, last: Outcome) -> bool:
    """Whether a model was recorded after it, by a run of whatever job: one by hand, say."""
    event = instance.get_latest_materialization_event(dg.AssetKey([name, names.TRAINED_MODEL]))
    return event is not None and event.timestamp > last.ended.timestamp()
