"""`orchestrator deploy`: puts a model of MLflow's into use, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


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
@click.option("--json", "as_json", is_flag=True, help="Say what was done as a JSON object.")
def deploy(*, uri: str, target: str, pipeline: str | None, take_over: bool, as_json: bool) -> int:
    """Put the model at URI into use.

    URI is models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-… or runs:/ID/PATH. A pipeline whose deployment is
    automatic deploys its champion again: `orchestrator promote` lasts.
    """
    from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder
    from orchestrator.pipeline.models.deployment_by_hand import deploy_by_hand
    from orchestrator.settings.variables import hand_aws_to_boto3, require_private_env_file

    require_private_env_file()
    hand_aws_to_boto3()
    pipelines = load_defs_folder(folder_of_pipelines()).pipelines
    rules = [rule for each in pipelines if (rule := each.deployment_rule()) is not None]
    settings_of = {each.name: each.pipeline_settings() for each in pipelines}
    done = deploy_by_hand(uri, target, rules, pipeline=pipeline, take_over=take_over, settings_of=settings_of)
    if as_json:
        before = asdict(done.before) if done.before else None
        answer = {"target": done.place, "deployed": asdict(done.release), "before": before}
        click.echo(json.dumps({"dagster_run_id": None, **answer}))  # as of commands that launch a run; this is none
        return 0
    before_words = f", after {done.before.title}" if done.before else ""
    click.echo(f"Deployed {done.release.title} to {done.place} ({done.seconds:.1f} s){before_words}")
    return 0
