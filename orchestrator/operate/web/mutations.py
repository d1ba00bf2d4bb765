"""What a GraphQL mutation does stands in the audit log, and what it launches carries its caller's name.

The tag is set where runs and backfills are stored, because there is one such place, and a dozen arguments in which a
client may write a tag of that name itself: of a launch, a re-execution, a backfill, or inherited from an earlier run.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from orchestrator import names
from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller

UNHEARD = frozenset({"logTelemetry", "setNuxSeen", "scheduleDryRun", "sensorDryRun"})
"""Mutations that change nothing of anybody's."""

SECRET_ARGUMENTS = ("runConfigData", "runConfig", "cursor", "attributes", "serializedMetadata", "metadata")
"""What people write there may be secret, and is of any length."""

LONGEST_TAG = 200

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def name_launches(storage: Any) -> None:
    """Let every run and backfill that this process stores carry the name of who launched it.

    Nothing is stored that nobody has launched: in this process, only callers launch. Whoever resumes a backfill has
    launched what it launches from then on.

    Args:
        storage: Dagster's storage of runs, whose methods are replaced.
    """
    add_run, add_backfill = storage.add_run, storage.add_backfill
    storage.add_run = lambda run: add_run(run.with_tags({**run.tags, **_tag()}))
    storage.add_backfill = lambda backfill: add_backfill(backfill._replace(tags={**backfill.tags, **_tag()}))
    update_backfill = storage.update_backfill

    def update(backfill: Any) -> Any:
        is_resumed = backfill.status.value == "REQUESTED"
        return update_backfill(backfill._replace(tags={**backfill.tags, **_tag()}) if is_resumed else backfill)

    storage.update_backfill = update


def audit_mutations(mutation_fields: Mapping[str, Any], audit: AuditLog) -> None:
    """Wrap the resolvers of a schema's mutations.

    Args:
        mutation_fields: name → GraphQL field, whose resolver is replaced.
        audit: where each call is written.
    """
    for name, field in mutation_fields.items():
        field.resolve = _audited(name, field.resolve, audit)


def _audited(name: str, resolve: Callable[..., Any], audit: AuditLog) -> Callable[..., Any]:
    def resolve_audited(root: object, info: Any, **arguments: Any) -> Any:
        caller = info.context.caller
        with _as(caller):
            try:
                result = resolve(root, info, **arguments)
            except BaseException as error:
                _write(audit, caller, name, arguments, type(error).__name__)
                raise
        if inspect.isawaitable(result):
            return _awaited(result, caller, arguments)
        _write(audit, caller, name, arguments, result)
        return result

    async def _awaited(result: Any, caller: Caller, arguments: Mapping[str, Any]) -> Any:
        with _as(caller):
            try:
                value = await result
            except BaseException as error:
                _write(audit, caller, name, arguments, type(error).__name__)
                raise
        _write(audit, caller, name, arguments, value)
        return value

    return resolve_audited


@contextmanager
def _as(caller: Caller) -> Iterator[None]:
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def _tag() -> Mapping[str, str]:
    caller = _caller.get()
    if caller is None:
        raise PermissionError("a run or backfill that nobody has launched is not stored")
    return {names.RunTag.LAUNCHED_BY: caller.name[:LONGEST_TAG]}


def _write(audit: AuditLog, caller: Caller, name: str, arguments: Mapping[str, Any], result: Any) -> None:
    if name in UNHEARD:
        return
    results = getattr(result, "launchMultipleRunsResult", None) or [result]
    ids = [found for item in results for found in _ids(item)]
    outcome = result if isinstance(result, str) else type(result).__name__.removeprefix("Graphene")
    audit.write(caller, name, of=_without_secrets(arguments), result=outcome, **({"ids": ids} if ids else {}))


def _ids(result: Any) -> list[str]:
    """The IDs of the runs or the backfill that a mutation has made or changed."""
    run = getattr(result, "run", None)
    texts = (getattr(run, "run_id", None), getattr(run, "runId", None), getattr(result, "backfill_id", None))
    return list(dict.fromkeys(text for text in texts if isinstance(text, str)))


def _without_secrets(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: "…" if key in SECRET_ARGUMENTS else _without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return value
