"""A fault campaign: trains builds on the real stack, breaks it in every phase, and checks that nothing leaks or lies.

`python -m orchestrator_sandbox.chaos --faults 100 --seed 7`; one of its faults again: `--replay 7/42`.
Exits 1 when a promise was broken, or when a replayed fault found nothing to harm.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.errors import OrchestratorError
from orchestrator.operate.signals import unwind_on_signals
from orchestrator_sandbox.chaos.campaign import Campaign
from orchestrator_sandbox.chaos.lab import FaultLab
from orchestrator_sandbox.chaos.observer import Observer
from orchestrator_sandbox.chaos.plan import MAX_TRIES, FaultQueue, plan
from orchestrator_sandbox.chaos.report import WIDTH, show, summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; return the exit status."""
    options = _parser().parse_args(arguments)
    unwind_on_signals()
    seed, hits, faults = options.seed, options.faults, plan(options.seed)
    if options.replay:
        seed, index = options.replay
        hits, faults = 1, itertools.islice(plan(seed), index, index + 1)
    queue = FaultQueue(faults, hits=hits)
    directory = options.dir or Path(tempfile.mkdtemp(prefix="chaos-"))
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    began = time.monotonic()
    try:
        console.print(f"{hits} faults, seed {seed}, in {directory}")
        with FaultLab(directory) as lab, Observer(lab) as observer:
            campaign = Campaign(lab, observer, say=lambda line: console.print(line, markup=False))
            campaign.warm_up()
            results, leftovers = campaign.judge_again(campaign.run(queue, at_once=options.at_once))
    except OrchestratorError as error:
        sys.stderr.write(f"chaos: {error}; the logs are in {directory}\n")
        return 1
    minutes = (time.monotonic() - began) / 60
    show(console, results, seed=seed, minutes=minutes)
    console.print(summary(results, seed=seed, minutes=minutes), markup=False)
    if leftovers or any(result.violations for result in results):
        details = "".join(f"; {problem}" for problem in leftovers)
        sys.stderr.write(f"chaos: promises were broken{details}; the logs are in {directory}\n")
        return 1
    if not options.dir:
        shutil.rmtree(directory, ignore_errors=True)
    if queue.hits < hits:
        sys.stderr.write(f"chaos: the fault found nothing to harm, {MAX_TRIES} times; do it again\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator_sandbox.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="how many hits (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="of the plan (default: another each time)"
    )
    parser.add_argument(
        "--replay",
        type=_seed_and_index,
        metavar="SEED/INDEX",
        help="do one fault of a campaign again, without those that were under way at the same time",
    )
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="builds in flight (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="folder of its data; default: a new one, removed if all went well")
    return parser


def _seed_and_index(text: str) -> tuple[int, int]:
    seed, _, index = text.partition("/")
    return int(seed), int(index)


if __name__ == "__main__":
    sys.exit(main())
