"""`orchestrator serve`."""

from __future__ import annotations

import click

from orchestrator.cli import parameters


@click.command(short_help="Dagster's UI and daemon, for your own settings.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; the UI has no login.",
)
@click.option("--port", type=parameters.port, default="3000", show_default=True, help="Port of the UI.")
def serve(*, host: str, port: int) -> int:
    """Dagster's UI and daemon, for the settings in the environment or .env.

    Runs them on workspace.yaml and dagster.yaml of this folder, or on our own where it has none; .env.example
    explains each setting. Stays up until Ctrl-C.
    """
    from orchestrator.operate import serve as service

    service.serve(host=host, port=port, say=click.echo)
    return 0
