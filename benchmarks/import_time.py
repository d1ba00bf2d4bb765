"""How long importing the code location takes, and how much memory: each process of Dagster pays for it.

`make import-time`; in the folder of another checkout, `python …/benchmarks/import_time.py` measures that one.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass

import click

MODULE = "orchestrator.definitions"


@dataclass(frozen=True)
class Cost:
    """What one fresh process has needed, from its start to its end.

    Attributes:
        seconds: by the wall clock.
        cpu_seconds: of the processor, which other processes disturb less.
        mebibytes: most memory that was resident at once.
    """

    seconds: float
    cpu_seconds: float
    mebibytes: float


def cost_of(python: str, program: str) -> Cost:
    """Run a program in a fresh Python.

    Raises:
        click.ClickException: it failed; its own output says why.
    """
    began = time.perf_counter()
    pid = os.posix_spawn(python, [python, "-c", program], dict(os.environ))
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise click.ClickException(f"{python} -c {program!r} failed")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True, help="Fresh processes to measure.")
@click.option("--python", default=sys.executable, metavar="PATH", help="Interpreter; default: the one that runs this.")
@click.option("--module", default=MODULE, show_default=True, metavar="NAME", help="What is imported.")
def import_time(*, runs: int, python: str, module: str) -> None:
    """Seconds and memory of `import orchestrator.definitions`, from the folder we are in: minimum, median, maximum."""
    program = f"import sys; sys.path.insert(0, ''); import {module}"
    cost_of(python, program)  # compiles, and brings the files into memory
    costs = [cost_of(python, program) for _ in range(runs)]
    click.echo(f"import {module}, {runs} fresh processes after one that does not count: minimum, median, maximum")
    for name in ("seconds", "cpu_seconds", "mebibytes"):
        values = [getattr(cost, name) for cost in costs]
        figures = "  ".join(f"{figure:7.2f}" for figure in (min(values), statistics.median(values), max(values)))
        click.echo(f"  {name:<12} {figures}")


if __name__ == "__main__":
    import_time()
