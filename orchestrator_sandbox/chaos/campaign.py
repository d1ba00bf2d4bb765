"""Does the faults of a campaign, several at once, each to a build of its own, and judges what became of the builds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator_sandbox.chaos.checks import ORPHAN_SECONDS, Facts, violations
from orchestrator_sandbox.chaos.faults import Injector, Missed, Span
from orchestrator_sandbox.chaos.plan import IDLE, Agenda, Fault, Kind
from orchestrator_sandbox.chaos.proxy import Toll
from orchestrator_sandbox.chaos.report import Result, line
from orchestrator_sandbox.chaos.service_manager import Attempt, Books
from orchestrator_sandbox.chaos.site import Site
from orchestrator_sandbox.chaos.watch import Watch
from orchestrator_sandbox.stack import JOB

LOOK_SECONDS = 0.2
SETTLE_LOOK_SECONDS = 2.0
IDLE_SECONDS = 120.0
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

    def run(self, agenda: Agenda, *, at_once: int) -> list[Result]:
        """Do faults, several at once, until the agenda has no more; return what became of each try.

        Args:
            agenda: which faults.
            at_once: how many builds are in flight.
        """
        results: list[Result] = []
        pending: set[Future[Result]] = set()
        with ThreadPoolExecutor(at_once, thread_name_prefix="fault") as pool:
            try:
                while True:
                    while len(pending) < at_once and (fault := agenda.next()):
                        pending.add(pool.submit(self._one, fault))
                    if not pending:
                        break
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for result in (one.result() for one in done):
                        results.append(result)
                        agenda.done(result.fault, hit=result.missed is None)
                        self._say(f"{agenda.hits} hits: {line(result)}")
            except BaseException:
                self._ended.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return sorted(results, key=lambda result: result.fault.index)

    def warm_up(self) -> None:
        """Train the build of the first commit, undisturbed.

        Raises:
            SandboxError: not even that goes well.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        while not self._site.stack.jenkins.idle():
            if time.monotonic() > deadline:
                raise SandboxError(f"Jenkins has not built the first commit after {IDLE_SECONDS:g} s")
            self._pause(LOOK_SECONDS)
        if broken := violations(self._settle(self._undisturbed(), None)):
            raise SandboxError(f"an undisturbed training does not go well: {'; '.join(broken)}")

    def judge_again(self, results: Sequence[Result]) -> tuple[list[Result], list[str]]:
        """Wait until nothing at all is under way, and look at every build once more: a retry may have come late.

        Returns:
            The results, with what is new of each; and what is wrong that belongs to none of them.
        """
        with self._site.books() as books:
            self._rest(books)
            again = [result.seen_again(self._facts(books, result.partition, result.fault.kind)) for result in results]
            left = [f"instance {instance.id} is left" for instance in self._site.instances()]
            return again, left + violations(self._facts(books, self._undisturbed(), None))

    def _one(self, fault: Fault) -> Result:
        """Do one fault to one build, and wait until all has settled."""
        partition = None if fault.phase == IDLE else self._green_build(failing=fault.kind is Kind.TRAINING_FAILS)
        missed: str | None = None
        lasted = 0.0
        injected = time.monotonic()
        try:
            with ExitStack() as lasting:
                with ExitStack() as holding:
                    attempt = self._meet(fault, partition, holding) if partition else None
                    span = self._injector.lasts(fault)
                    toll = lasting.enter_context(self._injector.start(fault, attempt=attempt))
                    injected = time.monotonic()
                partition = partition or self._green_build()
                lasted = self._outlast(toll, span, partition)
            if not toll.met:
                missed = f"no request met it in {lasted:.0f} s"
        except Missed as reason:
            missed = str(reason)
        partition = partition or self._green_build()
        facts = self._settle(partition, fault.kind)
        settled = time.monotonic() - injected
        return Result.of(fault, facts, missed=missed, lasted_seconds=lasted, settled_seconds=settled)

    def _undisturbed(self) -> str:
        return str(self._site.stack.jenkins.builds(JOB)[0].number)

    def _green_build(self, *, failing: bool = False) -> str:
        with self._building:
            if failing:
                newest = self._site.stack.jenkins.builds(JOB)[-1].number
                self._site.ledger.let_fail(str(newest + 1))
            return str(self._site.stack.jenkins.add_build(JOB, commit=self._commit).number)

    def _meet(self, fault: Fault, partition: str, holding: ExitStack) -> Attempt:
        """The attempt at this build, once it is as far in the phase as the fault wants it.

        Raises:
            Missed: it never was, or is past it.
        """
        # Held only when it is near, for that holds up all other builds as well.
        self._await_step(partition, (*BEFORE[fault.phase], fault.phase))
        holding.enter_context(self._injector.held(fault, partition))
        met = self._await_step(partition, (fault.phase,))
        self._pause(fault.after)
        now = self._watch.attempt(partition)
        with self._site.books() as books, suppress(DagsterDown):
            now = next((attempt for attempt in books.under_way() if attempt.id == met.id), None)
        if now is None or now.step != fault.phase:
            raise Missed(f"{fault.phase} was over when the fault came")
        return now

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

    def _outlast(self, toll: Toll, span: Span, partition: str) -> float:
        """Wait until a fault has lasted as long as it shall; return how long that was, in seconds."""
        began = time.monotonic()
        while True:
            seconds = time.monotonic() - began
            if seconds >= span.most or (seconds >= span.least and toll.met >= span.enough):
                return seconds
            if span.with_run and self._watch.attempt(partition) is None:
                return seconds
            self._pause(LOOK_SECONDS)

    def _settle(self, partition: str, kind: Kind | None) -> Facts:
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
                    settled = over and self._clean(partition)
                    late = now - began > SETTLE_SECONDS or (over_since and now - over_since > 2 * ORPHAN_SECONDS)
                    if settled or late:
                        return replace(self._facts(books, partition, kind), settled=settled)
                except (DagsterDown, SandboxError):
                    if now - began > 2 * SETTLE_SECONDS:
                        raise

    def _rest(self, books: Books) -> None:
        """Wait until nothing is under way anywhere, or for so long that judging will tell why not."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            with suppress(DagsterDown, SandboxError):
                quiet = not books.under_way() and not books.retries_due()
                if quiet and not self._site.instances() and not self._site.open_mlflow_runs():
                    return
            self._pause(SETTLE_LOOK_SECONDS)

    def _facts(self, books: Books, partition: str, kind: Kind | None) -> Facts:
        return replace(
            self._site.facts(books, partition),
            kind=kind,
            orphaned_seconds=self._watch.orphaned_seconds(partition),
            unattended_seconds=self._watch.unattended_seconds(partition),
        )

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
