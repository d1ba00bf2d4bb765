"""`orchestrator demo`: starts the sandbox, which is a package of its own beside the product."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli import parameters

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

PROGRAM = "orchestrator_sandbox.demo"


def demo_options(command: Decorated) -> Decorated:
    """The options of the demo, which the command here and the program that it starts both take."""
    for option in reversed(
        (
            click.option("--once", is_flag=True, help="End when the first model is in use; exit 0 if it was trained."),
            click.option(
                "--json",
                "as_json",
                is_flag=True,
                help="Make the last line of standard output a JSON object of the result.",
            ),
            click.option(
                "--port", type=parameters.port, default="3000", show_default=True, help="Port of Dagster's UI."
            ),
            click.option(
                "--dir",
                "directory",
                type=click.Path(path_type=Path),
                default=Path(".demo"),
                show_default=True,
                metavar="FOLDER",
                help="Folder of its data, kept between demos.",
            ),
            click.option(
                "--projects",
                type=click.IntRange(1, 9),
                default=1,
                show_default=True,
                help="How many ML projects, each with a repository, a Jenkins job and a pipeline of its own.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command(short_help="The whole loop on this machine, in a sandbox.")
@demo_options
def demo(*, once: bool, as_json: bool, port: int, directory: Path, projects: int) -> int:
    """The whole loop on this machine: a sandbox with Jenkins, EC2, Git and MLflow, and Dagster on it.

    Starts Jenkins, EC2 with real SSH hosts, a Git remote and MLflow on loopback, and Dagster's UI and daemon
    pointed at them; commits, builds and trains. The address of the UI that it prints holds the token that opens it.
    Stays up until Ctrl-C.
    """
    if importlib.util.find_spec(PROGRAM.partition(".")[0]) is None:
        raise click.ClickException(
            "the demo needs the sandbox, which is not part of the installed package; "
            "run `make demo` in a clone of the repository"
        )
    flags = [flag for flag, given in (("--once", once), ("--json", as_json)) if given]
    words = [*flags, "--port", str(port), "--dir", str(directory), "--projects", str(projects)]
    sys.stdout.flush()
    # It takes our place, so that signals, exit status and terminal are its own.
    os.execv(sys.executable, [sys.executable, "-m", PROGRAM, *words])  # noqa: S606 - no shell is wanted
