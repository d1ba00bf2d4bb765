"""Settings that a dagster.yaml of the user's own leaves without effect: Dagster would go on without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import LauncherSettings, StorageSettings, env_name
from orchestrator.settings.variables import lookup_all

FILE = "dagster.yaml"

POSTGRES_URL = env_name(StorageSettings.model_fields["postgres_url"])
LOGS_S3 = env_name(StorageSettings.model_fields["logs_s3"])
LAUNCHER = env_name(LauncherSettings.model_fields["kind"])
BROKER = env_name(LauncherSettings.model_fields["broker"])


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What of a dagster.yaml makes settings hold.

    Attributes:
        settings: their names; the part is needed when one of them is set.
        keys: where a dagster.yaml says something about it.
        module: ours, which reads them.
        lines: what our dagster.yaml says.
    """

    settings: tuple[str, ...]
    keys: tuple[str, ...]
    module: str
    lines: str


PARTS = (
    _Part(
        settings=(POSTGRES_URL,),
        keys=("storage", "run_storage", "event_log_storage", "schedule_storage"),
        module="orchestrator.storage.choice",
        lines="storage: {custom: {module: orchestrator.storage.choice, class: Storage}}",
    ),
    _Part(
        settings=(LOGS_S3,),
        keys=("compute_logs",),
        module="orchestrator.storage.logs",
        lines="compute_logs: {module: orchestrator.storage.logs, class: ComputeLogs}",
    ),
    _Part(
        settings=(LAUNCHER, BROKER),
        keys=("run_launcher",),
        module="orchestrator.launchers",
        lines="run_launcher: {module: orchestrator.launchers, class: Chosen}",
    ),
)


def without_effect(home: Path) -> Iterator[str]:
    """A sentence for each setting that is set and that the dagster.yaml of a DAGSTER_HOME does not use.

    Args:
        home: the folder; without a dagster.yaml nothing is said, because a container of one run has none.

    Raises:
        SettingsError: `.env` or a file of the secrets directory cannot be read.
    """
    config = home / FILE
    content = _content(config)
    if content is None:
        return  # Dagster itself says what is wrong with it
    texts = {name: text for name, text in lookup_all([POSTGRES_URL, LOGS_S3, LAUNCHER, BROKER]).items() if text}
    if texts.get(LAUNCHER) == "local":
        texts = {name: text for name, text in texts.items() if name not in (LAUNCHER, BROKER)}
    for part in PARTS:
        found = [name for name in part.settings if name in texts]
        said = {key: content[key] for key in part.keys if key in content}
        text = json.dumps(said, default=str)
        if found and part.module not in text and not any(name in text for name in found):
            instead = f" in place of its {' and '.join(f'`{key}`' for key in said)}" if said else ""
            yield (
                f"{found[0]} has no effect, because {config} does not use it: write `{part.lines}` there{instead}, or "
                f"take {found[0]} out"
            )


def require_effect(home: Path) -> None:
    """Check that the dagster.yaml of a DAGSTER_HOME uses what is set.

    Raises:
        SettingsError: it does not; says what to write.
    """
    if faults := list(without_effect(home)):
        raise SettingsError("; ".join(faults))


def _content(config: Path) -> dict[str, Any] | None:
    """What a dagster.yaml says; None: it is not there, or cannot be read."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if content is None:
        return {}
    return content if isinstance(content, dict) else None
