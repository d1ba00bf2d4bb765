"""`orchestrator deploy`: puts a model of MLflow's into use, by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from orchestrator.cli.models import who

if TYPE_CHECKING:
    from orchestrator.pipeline.models.deployment_by_hand import HandHistory

_log = logging.getLogger(__name__)


@click.command(short_help="Put a model of MLflow's into use in a target.")
@click.argument("uri")
@click.option(
    "--target",
    required=True,
    metavar="PIPELINE|JSON",
    help='The pipeline whose target is meant, or a target as JSON, such as \'{"directory": "/srv/models/churn"}\'.',
)
@click.option("--pipeline", metavar="P", help="On whose behalf; default: the target's pipeline, else the model's.")
@click.option("--take-over", is_flag=True, help="Also where another pipeline's model is in use.")
@click.option("--reason", default="", help="Why; stands in the asset's history, with your name.")
@click.option("--json", "as_json", is_flag=True, help="Say what was done as a JSON object.")
def deploy(*, uri: str, target: str, pipeline: str | None, take_over: bool, reason: str, as_json: bool) -> int:
    """Put the model at URI into use.

    URI is models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-… or runs:/ID/PATH. A pipeline whose deployment is
    automatic deploys its champion again: `orchestrator promote` lasts. The deployment stands in the history of
    P/deployed_model, in the Dagster of DAGSTER_HOME.
    """
    from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder
    from orchestrator.pipeline.models.deployment_by_hand import deploy_by_hand
    from orchestrator.settings.variables import hand_aws_to_boto3, require_private_env_file

    require_private_env_file()
    hand_aws_to_boto3()
    pipelines = load_defs_folder(folder_of_pipelines()).pipelines
    rules = [rule for each in pipelines if (rule := each.deployment_rule()) is not None]
    settings_of = {each.name: each.pipeline_settings() for each in pipelines}
    with _history(" ".join(reason.split())) as history:
        done = deploy_by_hand(
            uri, target, rules, pipeline=pipeline, take_over=take_over, settings_of=settings_of, history=history
        )
    if as_json:
        before = asdict(done.before) if done.before else None
        answer = {"target": done.place, "deployed": asdict(done.release), "before": before}
        click.echo(json.dumps({"dagster_run_id": None, **answer}))  # as of commands that launch a run; this is none
        return 0
    before_words = f", after {done.before.title}" if done.before else ""
    click.echo(f"Deployed {done.release.title} to {done.place} ({done.seconds:.1f} s){before_words}")
    return 0


@contextmanager
def _history(reason: str) -> Iterator[HandHistory | None]:
    """Dagster's, where it keeps one."""
    import dagster as dg

    from orchestrator.operate.home import dagster_home
    from orchestrator.pipeline.models.deployment_by_hand import HandHistory

    home = dagster_home()
    if not (home / "dagster.yaml").is_file():
        _log.warning(f"This deployment stands in no history: DAGSTER_HOME={home} has no dagster.yaml")
        yield None
        return
    try:
        instance = dg.DagsterInstance.from_config(str(home))
    except Exception as error:  # noqa: BLE001 - of whatever storage; a deployment may be what is needed most now
        _log.warning(f"This deployment stands in no history: Dagster of {home} cannot be used ({error})")
        yield None
        return
    with instance:
        yield HandHistory(instance=instance, by=who(), reason=reason)
