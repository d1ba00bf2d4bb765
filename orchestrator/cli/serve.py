"""`orchestrator serve`."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import parameters

PEM_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command(short_help="Dagster's UI and daemon, for your own settings.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; others than loopback need a login.",
)
@click.option("--port", type=parameters.port, default="3000", show_default=True, help="Port of the UI.")
@click.option("--cert", type=PEM_FILE, metavar="FILE", help="Certificate for TLS, a PEM file.")
@click.option("--key", type=PEM_FILE, metavar="FILE", help="Private key of the certificate, a PEM file.")
def serve(*, host: str, port: int, cert: Path | None, key: Path | None) -> int:
    """Dagster's UI and daemon, for the settings in the environment or .env.

    Runs them on workspace.yaml and dagster.yaml of this folder, or on our own where it has none; .env.example
    explains each setting. The address that is printed holds the token that opens the UI, unless
    there are users, or another login is set.
    Stays up until Ctrl-C.
    """
    from orchestrator.operate import serve as service

    service.serve(host=host, port=port, say=click.echo, certificate=cert, key=key)
    return 0
