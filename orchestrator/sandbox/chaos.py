"""A fault campaign: trains builds on the real stack, breaks it in every phase, and checks that nothing leaks or lies.

``python -m orchestrator.sandbox.chaos --faults 100 --seed 7``; one of its faults again: ``--replay 7/42``.
Exits 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.errors import DagsterDown, OrchestratorError, SandboxError
from orchestrator.sandbox.chaos_checks import ORPHAN_SECONDS, Facts, violations
from orchestrator.sandbox.chaos_dagster import Attempt, Books
from orchestrator.sandbox.chaos_faults import Injector, Missed
from orchestrator.sandbox.chaos_plan import IDLE, Fault, Kind, plan
from orchestrator.sandbox.chaos_report import WIDTH, Result, show, summary
from orchestrator.sandbox.chaos_site import Site
from orchestrator.sandbox.chaos_watch import Watch
from orchestrator.sandbox.stack import JOB
from orchestrator.signals import unwind_on_signals

LOOK_SECONDS = 0.2
SETTLE_LOOK_SECONDS = 2.0
PHASE_SECONDS = 600.0
"""A build that is not in the wanted phase by then never will be."""

BEFORE: dict[str, tuple[str | None, ...]] = {
    "resolve": (None,),
    "provision": (None, "resolve"),
    "train": (None, "resolve", "provision"),
    "terminate": ("train",),
    "record": ("train", "terminate"),
}
"""In which steps a run is about to come to a phase; None: in none yet."""

SETTLE_SECONDS = 900.0
"""Three attempts whose workers died without anybody noticing take 10 minutes."""


@dataclass(frozen=True)
class Settled:
    """A build at rest, or one that did not come to rest in time."""

    facts: Facts
    seconds: float


class Campaign:
    """Does faults to builds.

    Args:
        site: where.
        watch: looks on.
        say: takes each line for the user.
    """

    def __init__(self, site: Site, watch: Watch, *, say: Callable[[str], None]) -> None:
        self._site = site
        self._watch = watch
        self._say = say
        self._injector = Injector(site)
        self._commit = site.stack.git.head()
        self._building = threading.Lock()
        self._ended = threading.Event()

    def run(self, faults: Iterator[Fault], *, hits: int, at_once: int) -> list[Result]:
        """Do faults, several at once, until so many have hit; return what became of each.

        Args:
            faults: one after the other; those that miss are told as well, and do not count.
            hits: how many.
            at_once: how many builds are in flight.
        """
        results: list[Result] = []
        pending: set[Future[Result]] = set()
        with ThreadPoolExecutor(at_once, thread_name_prefix="fault") as pool:
            try:
                while True:
                    left = hits - sum(result.missed is None for result in results)
                    due = itertools.islice(faults, max(0, min(at_once, left) - len(pending)))
                    pending |= {pool.submit(self.one, fault) for fault in due}
                    if not pending:
                        return sorted(results, key=lambda result: result.fault.index)
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for one in done:
                        results.append(one.result())
                        self._tell(results[-1], sum(result.missed is None for result in results), hits)
            except BaseException:
                self._ended.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def one(self, fault: Fault) -> Result:
        """Do one fault to one build, and wait until all has settled."""
        missed: str | None = None
        partition: str | None = None
        seconds = 0.0
        injected = time.monotonic()
        with ExitStack() as lasting:
            try:
                with ExitStack() as holding:
                    attempt = None
                    if fault.phase != IDLE:
                        partition = self._green_build(failing=fault.kind is Kind.TRAINING_FAILS)
                        # Only now, for it holds up all other builds as well.
                        self._await_step(partition, (*BEFORE[fault.phase], fault.phase))
                        holding.enter_context(self._injector.held(fault.phase))
                        attempt = self._await_step(partition, (fault.phase,))
                        self._pause(fault.after)
                    seconds = self._injector.lasts(fault)
                    lasting.enter_context(self._injector.start(fault, attempt=attempt))
                    injected = time.monotonic()
            except Missed as reason:
                missed = str(reason)
            partition = partition or self._green_build()
            self._pause(seconds if missed is None else 0)
        settled = self._settle(partition)
        facts = settled.facts
        return Result(
            fault=fault,
            partition=partition,
            missed=missed,
            outcome=facts.attempts[-1].status if facts.attempts else "",
            why=facts.attempts[-1].why if facts.attempts else None,
            attempts=len(facts.attempts),
            trainings=len(facts.trainings),
            settled_seconds=time.monotonic() - injected,
            orphaned_seconds=facts.orphaned_seconds,
            unattended_seconds=self._watch.unattended_seconds(partition),
            violations=tuple(violations(facts)),
        )

    def warm_up(self) -> None:
        """Train the build of the first commit, undisturbed.

        Raises:
            SandboxError: not even that goes well.
        """
        _await(self._site.stack.jenkins.idle, seconds=120)
        facts = self._settle(str(self._site.stack.jenkins.builds(JOB)[-1].number)).facts
        if broken := violations(facts):
            raise SandboxError(f"an undisturbed training does not go well: {'; '.join(broken)}")

    def _green_build(self, *, failing: bool = False) -> str:
        with self._building:
            if failing:
                newest = self._site.stack.jenkins.builds(JOB)[-1].number
                self._site.ledger.let_fail(str(newest + 1))
            return str(self._site.stack.jenkins.add_build(JOB, commit=self._commit).number)

    def _await_step(self, partition: str, steps: Sequence[str | None]) -> Attempt:
        """The attempt at this build, once it is in one of these steps.

        Raises:
            Missed: it went past them, or did not come to them.
        """
        deadline = time.monotonic() + PHASE_SECONDS
        next_look = time.monotonic()
        with self._site.books() as books:
            while (now := time.monotonic()) < deadline:
                attempt = self._watch.attempt(partition)
                if attempt is not None and attempt.step in steps:
                    return attempt
                # Between two attempts, there is none under way.
                if attempt is None and now >= next_look:
                    next_look = now + SETTLE_LOOK_SECONDS
                    with suppress(DagsterDown):
                        if self._over(books, partition):
                            raise Missed(f"the run was over before it was seen in {steps[-1]}")
                self._pause(LOOK_SECONDS)
        raise Missed(f"no run of the build came to {steps[-1]} in {PHASE_SECONDS:g} s")

    def _settle(self, partition: str) -> Settled:
        """Wait until no attempt at this build may do anything any more, and nothing of it is left."""
        began = time.monotonic()
        over_since: float | None = None
        with self._site.books() as books:
            while True:
                self._pause(SETTLE_LOOK_SECONDS)
                now = time.monotonic()
                try:
                    over = self._over(books, partition)
                    over_since = (over_since or now) if over else None
                    late = now - began > SETTLE_SECONDS or (over_since and now - over_since > 2 * ORPHAN_SECONDS)
                    if late or (over and self._clean(partition)):
                        orphaned = self._watch.orphaned_seconds(partition)
                        return Settled(self._site.facts(books, partition, orphaned_seconds=orphaned), now - began)
                except (DagsterDown, SandboxError):
                    if now - began > 2 * SETTLE_SECONDS:
                        raise

    def _over(self, books: Books, partition: str) -> bool:
        attempts = books.attempts(partition)
        return bool(attempts) and not any(attempt.live for attempt in attempts)

    def _clean(self, partition: str) -> bool:
        return (
            all(instance.partition != partition for instance in self._site.instances())
            and partition not in self._site.open_mlflow_runs().values()
            and not list(self._site.left_processes())
        )

    def _pause(self, seconds: float) -> None:
        """Wait, but not when the campaign is being ended by a signal or an error elsewhere."""
        if self._ended.wait(seconds):
            raise SandboxError("the campaign was ended before its time")

    def _tell(self, result: Result, done: int, of: int) -> None:
        missed = f", missed: {result.missed}" if result.missed else ""
        self._say(
            f"{done}/{of} {result.fault}: build {result.partition} {result.outcome or 'not trained'}, "
            f"{result.attempts} runs, {result.trainings} trainings, {result.settled_seconds:.0f} s{missed}"
        )
        for violation in result.violations:
            self._say(f"    VIOLATION: {violation}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; return the exit status."""
    options = _parser().parse_args(arguments)
    unwind_on_signals()
    seed, first, hits = options.seed, 0, options.faults
    if options.replay:
        (seed, first), hits = options.replay, 1
    faults = itertools.islice(plan(seed), first, None)
    directory = options.dir or Path(tempfile.mkdtemp(prefix="chaos-"))
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    began = time.monotonic()
    try:
        console.print(f"{hits} faults, seed {seed}, in {directory}")
        with Site(directory) as site, Watch(site) as watch:
            campaign = Campaign(site, watch, say=lambda line: console.print(line, markup=False))
            campaign.warm_up()
            results = campaign.run(faults, hits=hits, at_once=options.at_once)
            left = [instance.id for instance in site.instances()]
    except OrchestratorError as error:
        sys.stderr.write(f"chaos: {error}; the logs are in {directory}\n")
        return 1
    minutes = (time.monotonic() - began) / 60
    show(console, results, seed=seed, minutes=minutes)
    console.print(summary(results, seed=seed, minutes=minutes), markup=False)
    if left or any(result.violations for result in results):
        sys.stderr.write(f"chaos: promises were broken; instances left: {left}; the logs are in {directory}\n")
        return 1
    if not options.dir:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sandbox.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="how many hits (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="of the plan (default: another each time)"
    )
    parser.add_argument("--replay", type=_place, metavar="SEED/INDEX", help="do one fault of a campaign again")
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="builds in flight (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="folder of its data; default: a new one, removed if all went well")
    return parser


def _place(text: str) -> tuple[int, int]:
    seed, _, index = text.partition("/")
    return int(seed), int(index)


def _await(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SandboxError(f"the sandbox is not ready after {seconds:g} s")
        threading.Event().wait(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
