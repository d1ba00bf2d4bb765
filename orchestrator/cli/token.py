"""`orchestrator token`: tokens for machines that use the API of `serve`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orchestrator.operate.web.tokens import MachineTokens

ROLES = ("viewer", "launcher", "admin")


@click.group(no_args_is_help=False, short_help="Tokens for machines that use the API of `serve`.")
def token() -> None:
    """Tokens for machines: named, each with a role.

    Their hashes are kept in DAGSTER_HOME; a running `serve` knows of each change. A machine sends its token as
    `Authorization: Bearer TOKEN`.
    """


@token.command(short_help="Make a token, and print it once.")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    required=True,
    help="viewer reads; launcher launches, re-executes, cancels and backfills, too; admin does everything.",
)
def add(*, name: str, role: str) -> int:
    """Make a token named NAME, and print it: on standard output, once, because only its hash is kept."""
    from orchestrator.operate.web.caller import Role

    click.echo(_tokens().add(name, Role(role)))
    click.echo(f"This is the token {name} ({role}); it is not kept and cannot be shown again", err=True)
    return 0


@token.command(name="list", short_help="The names and roles of all tokens.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of objects: name, role, created.")
def list_tokens(*, as_json: bool) -> int:
    """The names and roles of all tokens, and when they were made."""
    entries = [{"name": entry.name, "role": entry.role.value, "created": entry.created} for entry in _tokens().all()]
    if as_json:
        click.echo(json.dumps(entries))
        return 0
    for entry in entries:
        click.echo(f"{entry['name']:<32} {entry['role']:<9} {entry['created']}")
    return 0


@token.command(short_help="Remove a token; it opens nothing from then on.")
@click.argument("name")
def remove(*, name: str) -> int:
    """Remove the token named NAME; it opens nothing from then on."""
    _tokens().remove(name)
    return 0


def _tokens() -> MachineTokens:
    from orchestrator.operate.home import dagster_home
    from orchestrator.operate.web.tokens import MachineTokens
    from orchestrator.settings.variables import require_private_env_file

    require_private_env_file()
    return MachineTokens(dagster_home())
