"""The command line, `orchestrator COMMAND`. Thin: each command calls the module that does it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from orchestrator.cli.demo import demo
from orchestrator.cli.deploy import deploy
from orchestrator.cli.iam_policy import iam_policy
from orchestrator.cli.models import models, promote, rollback
from orchestrator.cli.program import run
from orchestrator.cli.serve import serve
from orchestrator.cli.space import space
from orchestrator.cli.storage import backup, migrate, restore
from orchestrator.cli.token import token
from orchestrator.cli.user import user
from orchestrator.cli.worker import worker


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
def orchestrator() -> None:
    """Every green Jenkins build becomes a trained, measured, traceable model."""


orchestrator.add_command(backup)
orchestrator.add_command(demo)
orchestrator.add_command(deploy)
orchestrator.add_command(iam_policy)
orchestrator.add_command(migrate)
orchestrator.add_command(models)
orchestrator.add_command(promote)
orchestrator.add_command(restore)
orchestrator.add_command(rollback)
orchestrator.add_command(serve)
orchestrator.add_command(space)
orchestrator.add_command(token)
orchestrator.add_command(user)
orchestrator.add_command(worker)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `program.run`."""
    return run(orchestrator, arguments)
