"""`orchestrator worker`."""

from __future__ import annotations

import click


@click.command(short_help="Execute runs on this machine, as a Celery worker.")
@click.option(
    *("--slots", "-c", "--concurrency"),
    "slots",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="How many runs at once; each waits for its training, and needs about 90 MB.",
)
@click.option(
    *("--name", "-H", "--celery-hostname"),
    "name",
    metavar="NAME",
    help="Its name in Flower, unlike those of the other workers on this machine.",
)
def worker(*, slots: int, name: str | None) -> int:
    """Execute runs on this machine, as a Celery worker: what `airflow celery worker` is to Airflow.

    Takes whole runs from CELERY_BROKER_URL, which `orchestrator serve` has, too; both need the same settings and the
    same database. It stays up until SIGTERM: then its runs are taken over by other workers, at the point that they
    have come to. Ctrl-C once lets them come to their end.
    """
    from orchestrator.operate.worker import work

    return work(slots=slots, name=name, say=click.echo)
