"""How every command of ours runs as a program: signals, errors, exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import click

from orchestrator import log_format
from orchestrator.errors import OrchestratorError
from orchestrator.operate.signals import unwind_on_signals

_log = logging.getLogger(__name__)


def run(command: click.Command, arguments: Sequence[str] | None = None, *, name: str = "orchestrator") -> int:
    """Run a command as a program of that name.

    Args:
        command: what to run.
        arguments: the words after the program's name; default: those of this process.
        name: what its help calls it.

    Returns:
        The exit status: 0, 1 after an error, 2 after a wrong word; an error is one sentence on standard error.
        A signal raises SystemExit with 128 + its number, and everything that was started is cleaned up on the way.
    """
    unwind_on_signals()
    try:
        # A command returns its exit status; `--help`, which ends before, counts as 0.
        status = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        program = error.ctx.command_path if error.ctx else name
        sentence = " ".join(error.format_message().split())  # click lists the choices on lines of their own
        return _failed(f"{sentence.rstrip('.')}; `{program} --help` lists what there is", status=2)
    except click.ClickException as error:
        return _failed(error.format_message(), status=error.exit_code)
    except OrchestratorError as error:
        return _failed(str(error), status=1)
    return status if isinstance(status, int) else 0


def _failed(sentence: str, *, status: int) -> int:
    if log_format.in_use():
        _log.critical("%s", sentence)
    else:
        sys.stderr.write(f"orchestrator: {sentence}\n")
    return status
