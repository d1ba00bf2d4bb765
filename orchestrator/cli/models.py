"""`orchestrator models`, `promote` and `rollback`: which versions there are, and a person's word on the champion."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import SettingsError

if TYPE_CHECKING:
    from orchestrator.pipeline.component import TrainingPipeline
    from orchestrator.pipeline.models.champion import Decision
    from orchestrator.pipeline.models.declared import ChampionRule
    from orchestrator.resources.mlflow import Mlflow

REASON = click.option("--reason", required=True, help="Why; kept as a tag of the version, with your name.")
JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.command(short_help="The registered versions of all pipelines' models, or of one's.")
@click.argument("pipeline", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="As a JSON list: model, version, aliases, metrics, build, commit, run_id …"
)
def models(*, pipeline: str | None, as_json: bool) -> int:
    """The registered versions of the models of PIPELINE, or of all pipelines that have a champion; newest first."""
    from orchestrator.pipeline.models.promotion import overview

    entries = []
    for found in _pipelines(pipeline):
        rule = _rule(found)
        with closing(_mlflow(found)) as mlflow:
            entries += overview(mlflow, rule)
    if as_json:
        click.echo(json.dumps(entries))
        return 0
    for entry in entries:
        click.echo(_line(entry))
    return 0


@click.command(short_help="Make a version the champion.")
@click.argument("pipeline")
@click.argument("version")
@REASON
@JSON
def promote(*, pipeline: str, version: str, reason: str, as_json: bool) -> int:
    """Make VERSION of PIPELINE's registered model the champion. It stays until a version of a newer build beats it."""
    from orchestrator.pipeline.models.promotion import promote as make_champion

    [found] = _pipelines(pipeline)
    rule = _rule(found)
    with closing(_mlflow(found)) as mlflow:
        decision = make_champion(mlflow, rule, version, by=who(), reason=_reason(reason), now=datetime.now(UTC))
        return _show(mlflow, rule, decision, as_json=as_json)


@click.command(short_help="Leave the present champion for the best of the others.")
@click.argument("pipeline")
@REASON
@JSON
def rollback(*, pipeline: str, reason: str, as_json: bool) -> int:
    """Leave PIPELINE's present champion, which is rejected until somebody promotes it, for the best of the others."""
    from orchestrator.pipeline.models.promotion import roll_back

    [found] = _pipelines(pipeline)
    rule = _rule(found)
    with closing(_mlflow(found)) as mlflow:
        decision = roll_back(mlflow, rule, by=who(), reason=_reason(reason), now=datetime.now(UTC))
        return _show(mlflow, rule, decision, as_json=as_json)


def _pipelines(name: str | None) -> Sequence[TrainingPipeline]:
    """The pipeline of this name; without one, all that have a champion.

    Raises:
        SettingsError: there is none of this name, or it has no champion.
    """
    from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder
    from orchestrator.settings.variables import hand_aws_to_boto3, require_private_env_file

    require_private_env_file()
    hand_aws_to_boto3()
    loaded = load_defs_folder(folder_of_pipelines())
    with_champion = [pipeline for pipeline in loaded.pipelines if pipeline.champion is not None]
    if name is None:
        return with_champion
    chosen = [pipeline for pipeline in loaded.pipelines if pipeline.name == name]
    if not chosen:
        for broken in loaded.broken:
            if name in broken.names:
                raise SettingsError(f"pipeline {name} cannot be loaded: {broken.fault}")
        known = ", ".join(pipeline.name for pipeline in loaded.pipelines) or "none"
        raise SettingsError(f"there is no pipeline {name!r}; there are: {known}")
    if chosen[0].champion is None:
        raise SettingsError(
            f"pipeline {name} has no champion: write `champion: {{metric: …, goal: …}}` into its defs.yaml"
        )
    return chosen


def _rule(pipeline: TrainingPipeline) -> ChampionRule:
    rule = pipeline.model_rules().champion
    if rule is None:
        raise SettingsError(f"pipeline {pipeline.name} has no champion")
    return rule


def _mlflow(pipeline: TrainingPipeline) -> Mlflow:
    from orchestrator.resources.mlflow import Mlflow
    from orchestrator.resources.retry import MLFLOW_CLOSING
    from orchestrator.settings.groups import MlflowSettings

    return Mlflow(pipeline.pipeline_settings().read(MlflowSettings), policy=MLFLOW_CLOSING)


def who() -> str:
    """Who gives a command: user and machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user without a name
        return f"somebody@{socket.gethostname()}"


def _reason(reason: str) -> str:
    text = " ".join(reason.split())
    if not text:
        raise click.UsageError("--reason is empty: say why, in a few words")
    return text[:500]


def _show(mlflow: Mlflow, rule: ChampionRule, decision: Decision, *, as_json: bool) -> int:
    from orchestrator.pipeline.models.champion_asset import summary
    from orchestrator.pipeline.models.promotion import overview

    version = decision.champion.version.version if decision.champion else ""
    if as_json:
        click.echo(json.dumps([entry for entry in overview(mlflow, rule) if entry["version"] == version]))
    else:
        click.echo(summary(decision, rule))
    return 0


def _line(fields: Mapping[str, Any]) -> str:
    from orchestrator.printable import printable

    metrics = ", ".join(f"{key} {value:.6g}" for key, value in fields["metrics"].items() if value is not None)
    parts = [
        f"{fields['model']} v{fields['version']}",
        f"[{', '.join(fields['aliases'])}]" if fields["aliases"] else "",
        f"build {fields['build']}" if fields["build"] else "",
        str(fields["commit"] or "")[:12],
        metrics[:200],
        f"({fields['remark']})" if fields["remark"] else "",
    ]
    return printable("  ".join(part for part in parts if part))
