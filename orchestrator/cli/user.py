"""`orchestrator user`: people who log in to `serve` by name and password."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli.token import ROLES

if TYPE_CHECKING:
    from orchestrator.operate.web.users import Users

ROLE_HELP = "viewer reads; launcher launches, re-executes, cancels and backfills, too; admin does everything."


@click.group(no_args_is_help=False, short_help="People who log in to `serve` by name and password.")
def user() -> None:
    """People who log in to `serve` by name and password, each with a role.

    Hashes of their passwords (argon2id) are kept in ORCHESTRATOR_USERS_FILE, by default users.json in DAGSTER_HOME; a
    running `serve` knows of each change. A password is asked for, or is the first line of standard input.
    """


@user.command(short_help="Add a user; asks for the password.")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help=ROLE_HELP)
def add(*, name: str, role: str) -> int:
    """Add a user named NAME. The password is asked for twice, or is the first line of standard input."""
    from orchestrator.operate.web.caller import Role

    _users().add(name, Role(role), _password(name))
    click.echo(f"{name} may log in as {role}", err=True)
    return 0


@user.command(name="list", short_help="The names and roles of all users.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of objects: name, role, created, changed.")
def list_users(*, as_json: bool) -> int:
    """The names and roles of all users, and when their password or role was last set."""
    entries = [
        {"name": entry.name, "role": entry.role.value, "created": entry.created, "changed": entry.changed}
        for entry in _users().all()
    ]
    if as_json:
        click.echo(json.dumps(entries))
        return 0
    for entry in entries:
        click.echo(f"{entry['name']:<32} {entry['role']:<9} {entry['changed']}")
    return 0


@user.command(short_help="Remove a user, whose sessions end at once.")
@click.argument("name")
def remove(*, name: str) -> int:
    """Remove the user named NAME, whose sessions end at once."""
    _users().remove(name)
    return 0


@user.command(short_help="Set another password, which ends the user's sessions.")
@click.argument("name")
def passwd(*, name: str) -> int:
    """Set another password for the user named NAME, whose sessions end. It is asked for, or read, as in `add`."""
    _users().change(name, password=_password(name))
    return 0


@user.command(short_help="Give a user another role, which ends the user's sessions.")
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
def role(*, name: str, role: str) -> int:
    """Give the user named NAME another role; the user's sessions end."""
    from orchestrator.operate.web.caller import Role

    _users().change(name, role=Role(role))
    return 0


def _password(name: str) -> str:
    """The password that is typed twice or piped in; never a word of the command line, which every user can read."""
    from orchestrator.errors import SettingsError
    from orchestrator.operate.web.users import NOT_UTF8

    if sys.stdin.isatty():
        text: str = click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True)
        return text
    line = sys.stdin.buffer.readline()
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SettingsError(NOT_UTF8) from error


def _users() -> Users:
    from orchestrator.operate.home import dagster_home
    from orchestrator.operate.web.users import FILE, Users
    from orchestrator.settings.groups import UiSettings
    from orchestrator.settings.source import SettingsSource
    from orchestrator.settings.variables import require_private_env_file

    require_private_env_file()
    named = SettingsSource().read(UiSettings).users_file
    return Users((named or dagster_home() / FILE).expanduser().absolute())
