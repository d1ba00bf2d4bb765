"""`orchestrator iam-policy`: what AWS must allow the orchestrator, and nothing else."""

from __future__ import annotations

import json

import click


@click.command(name="iam-policy", short_help="The tightest AWS policy for the present settings, as JSON.")
@click.option("--account", metavar="NUMBER", help="Number of the AWS account; default: ACCOUNT, to be filled in.")
@click.option(
    "--role",
    "roles",
    metavar="NAME",
    multiple=True,
    help="Role in INSTANCE_PROFILE, by name or ARN; default: the profile's name. May be given several times.",
)
@click.option(
    "--volume-gb",
    type=click.IntRange(min=1, max=65536),
    metavar="GB",
    help="Size of the largest volume, where a disk of the image is larger than ROOT_VOLUME_GB (30).",
)
@click.option(
    "--target",
    "targets",
    metavar="JSON",
    multiple=True,
    help="A target that `orchestrator deploy --target JSON` is to reach, besides those of the pipelines.",
)
@click.option("--explain", is_flag=True, help="Say on standard error what each statement is for, and what none can do.")
def iam_policy(
    *, account: str | None, roles: tuple[str, ...], volume_gb: int | None, targets: tuple[str, ...], explain: bool
) -> int:
    """The tightest IAM policy for the present settings of all pipelines: JSON on standard output.

    Nothing is asked of AWS. What had to be assumed is said on standard error.
    """
    from orchestrator.operate.iam_policy import present_policy
    from orchestrator.resources.targets import TargetBlock
    from orchestrator.settings.variables import require_private_env_file

    if account is not None and not (len(account) == 12 and account.isdecimal() and account.isascii()):
        raise click.BadParameter(f"{account!r} is no number of 12 digits", param_hint="'--account'")
    require_private_env_file()
    named = [TargetBlock.parse(target) for target in targets]
    policy = present_policy(account=account, roles=roles, volume_gb=volume_gb, targets=named)
    click.echo(json.dumps(policy.document(), indent=2))
    for note in policy.notes:
        click.echo(f"Note: {note}", err=True)
    if explain:
        click.echo(f"\n{policy.explanation()}", err=True)
    return 0
