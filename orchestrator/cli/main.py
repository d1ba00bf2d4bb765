"""The command line: `orchestrator demo | serve`. Thin: each command calls the module that does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.operate.signals import unwind_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; default: those of this process.

    Returns:
        The exit status: 0, or 1 after an error, which is one sentence on standard error. A signal exits
        with 128 + its number, once everything that was started is cleaned up.
    """
    options = _parser().parse_args(arguments)
    unwind_on_signals()
    try:
        return int(options.run(options))
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Every green Jenkins build becomes a trained, measured, traceable model.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="the whole loop on this machine: a sandbox with Jenkins, EC2, Git and MLflow, and Dagster on it",
        description="Starts Jenkins, EC2 with real SSH hosts, a Git remote and MLflow on loopback, and Dagster's UI "
        "and daemon pointed at them; commits, builds and trains. Stays up until Ctrl-C.",
    )
    demo.add_argument("--once", action="store_true", help="end after the first model; exit 0 if it was trained")
    demo.add_argument(
        "--json", action="store_true", help="make the last line of standard output a JSON object of the result"
    )
    demo.add_argument("--port", type=_port, default=3000, help="port of Dagster's UI (default: %(default)s)")
    demo.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="folder of its data, kept between demos (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)
    serve = commands.add_parser(
        "serve",
        help="Dagster's UI and daemon, for the settings in the environment or .env",
        description="Runs Dagster's UI and daemon on workspace.yaml and dagster.yaml, for the settings in the "
        "environment or .env (.env.example explains each). Stays up until Ctrl-C.",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; the UI has no login (default: %(default)s)"
    )
    serve.add_argument("--port", type=_port, default=3000, help="port of the UI (default: %(default)s)")
    serve.set_defaults(run=_serve)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    from orchestrator_sandbox.demo.story import demo  # the sandbox is an extra that `serve` does without

    return demo(directory=options.dir, port=options.port, once=options.once, as_json=options.json)


def _serve(options: argparse.Namespace) -> int:
    from orchestrator.operate.serve import serve

    serve(host=options.host, port=options.port, say=lambda line: print(line, flush=True))  # noqa: T201 - for people
    return 0


if __name__ == "__main__":
    sys.exit(main())
