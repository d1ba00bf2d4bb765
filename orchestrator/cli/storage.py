"""`orchestrator backup`, `restore` and `migrate`."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Write everything that Dagster keeps into a file.")
@click.argument("file", type=FILE)
def backup(*, file: Path) -> int:
    """Write everything that Dagster keeps into FILE, which you alone may read.

    Of SQLite in DAGSTER_HOME, or of the PostgreSQL of DAGSTER_POSTGRES_URL, by pg_dump. `serve` may run meanwhile.
    """
    from orchestrator.operate import backup as service
    from orchestrator.operate.home import dagster_home

    service.backup(dagster_home(), file.absolute())
    click.echo(f"Wrote {file}", err=True)
    return 0


@click.command(short_help="Replace everything that Dagster keeps by a backup.")
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Also when there are runs, which are lost.")
def restore(*, file: Path, force: bool) -> int:
    """Replace everything that Dagster keeps by FILE, which `orchestrator backup` wrote. No `serve` may run."""
    from orchestrator.operate import backup as service
    from orchestrator.operate.home import dagster_home

    service.restore(dagster_home(), file.absolute(), force=force)
    click.echo(f"Restored {file}", err=True)
    return 0


@click.command(short_help="Bring Dagster's tables to what this version wants.")
def migrate() -> int:
    """Bring Dagster's tables to what this version wants, if they are of an older one. No `serve` may run.

    Make a backup first: there is no way back but to restore it.
    """
    from orchestrator.operate import migrate as service
    from orchestrator.operate.home import dagster_home

    service.migrate(dagster_home(), say=lambda line: click.echo(line, err=True))
    return 0
