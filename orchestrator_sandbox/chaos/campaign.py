"""Does the faults of a campaign, several at once, each to a build of its own, and judges what became of the builds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator.names import Step
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.checks import ORPHAN_SECONDS, BuildFacts, violations
from orchestrator_sandbox.chaos.faults import FaultDuration, FaultInjector, FaultMissed
from orchestrator_sandbox.chaos.lab import FaultLab
from orchestrator_sandbox.chaos.observer import Observer
from orchestrator_sandbox.chaos.plan import IDLE, FaultKind, FaultQueue, PlannedFault
from orchestrator_sandbox.chaos.report import FaultResult, line
from orchestrator_sandbox.proxy import HitCount
from orchestrator_sandbox.stack import JOB

LOOK_SECONDS = 0.2
SETTLE_LOOK_SECONDS = 2.0
IDLE_SECONDS = 120.0
PHASE_SECONDS = 600.0
"""A build that is not in the wanted phase within this time never will be."""

STEPS_BEFORE: dict[str, tuple[str | None, ...]] = {
    Step.RESOLVE: (None,),
    Step.PROVISION: (None, Step.RESOLVE),
    Step.TRAIN: (None, Step.RESOLVE, Step.PROVISION),
    Step.TERMINATE: (Step.TRAIN,),
    Step.RECORD: (Step.TRAIN, Step.TERMINATE),
}
"""The steps in which a run is about to enter a phase; None: it has no step yet."""

SETTLE_SECONDS = 900.0
"""Three attempts whose workers died without anybody noticing take 10 minutes."""


class Campaign:
    """Does faults to builds.

    Args:
        lab: where.
        observer: knows which attempts are under way.
        say: takes each line for the user.
    """

    def __init__(self, lab: FaultLab, observer: Observer, *, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._observer = observer
        self._say = say
        self._injector = FaultInjector(lab)
        self._commit = lab.stack.git.head()
        self._building = threading.Lock()
        self._ended = threading.Event()

    def run(self, queue: FaultQueue, *, at_once: int) -> list[FaultResult]:
        """Do faults, several at once, until the queue has no more; return what became of each try.

        Args:
            queue: which faults.
            at_once: how many builds are in flight.
        """
        results: list[FaultResult] = []
        pending: set[Future[FaultResult]] = set()
        with ThreadPoolExecutor(at_once, thread_name_prefix="fault") as pool:
            try:
                while True:
                    while len(pending) < at_once and (fault := queue.next()):
                        pending.add(pool.submit(self._try, fault))
                    if not pending:
                        break
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for result in (future.result() for future in done):
                        results.append(result)
                        queue.done(result.fault, hit=result.missed is None)
                        self._say(f"{queue.hits} hits: {line(result)}")
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
        while not self._lab.stack.jenkins.idle():
            if time.monotonic() > deadline:
                raise SandboxError(f"Jenkins has not built the first commit after {IDLE_SECONDS:g} s")
            self._pause(LOOK_SECONDS)
        if broken := violations(self._settle(self._undisturbed(), None)):
            raise SandboxError(f"an undisturbed training does not go well: {'; '.join(broken)}")

    def judge_again(self, results: Sequence[FaultResult]) -> tuple[list[FaultResult], list[str]]:
        """Wait until nothing at all is under way, and look at every build once more: a retry may have come late.

        Returns:
            The results, brought up to date; and what is wrong that belongs to none of them.
        """
        with self._lab.dagster() as dagster:
            self._await_quiet(dagster)
            again = [result.updated(self._facts(dagster, result.partition, result.fault.kind)) for result in results]
            leftovers = [f"instance {instance.id} is left" for instance in self._lab.instances()]
            return again, leftovers + violations(self._facts(dagster, self._undisturbed(), None))

    def _try(self, fault: PlannedFault) -> FaultResult:
        """Do one fault to one build, and wait until all has settled."""
        partition = None if fault.phase == IDLE else self._green_build(failing=fault.kind is FaultKind.TRAINING_FAILS)
        missed: str | None = None
        lasted = 0.0
        injected = time.monotonic()
        try:
            with ExitStack() as lasting:
                with ExitStack() as holding:
                    attempt = self._meet(fault, partition, holding) if partition else None
                    duration = self._injector.duration(fault)
                    hits = lasting.enter_context(self._injector.start(fault, attempt=attempt))
                    injected = time.monotonic()
                partition = partition or self._green_build()
                lasted = self._outlast(hits, duration, partition)
            if not hits.count:
                missed = f"no request met it in {lasted:.0f} s"
        except FaultMissed as reason:
            missed = str(reason)
        partition = partition or self._green_build()
        facts = self._settle(partition, fault.kind)
        settled = time.monotonic() - injected
        return FaultResult.of(fault, facts, missed=missed, lasted_seconds=lasted, settled_seconds=settled)

    def _undisturbed(self) -> str:
        return str(self._lab.stack.jenkins.builds(JOB)[0].number)

    def _green_build(self, *, failing: bool = False) -> str:
        with self._building:
            if failing:
                newest = self._lab.stack.jenkins.builds(JOB)[-1].number
                self._lab.ledger.let_fail(str(newest + 1))
            return str(self._lab.stack.jenkins.add_build(JOB, commit=self._commit).number)

    def _meet(self, fault: PlannedFault, partition: str, holding: ExitStack) -> DagsterAttempt:
        """Wait until the attempt at this build is as far in the phase as the fault wants it, and return it.

        Raises:
            FaultMissed: it never was, or is past the phase.
        """
        # Only now, because it holds up all other builds as well.
        self._await_step(partition, (*STEPS_BEFORE[fault.phase], fault.phase))
        holding.enter_context(self._injector.held(fault, partition))
        met = self._await_step(partition, (fault.phase,))
        self._pause(fault.after)
        now = self._observer.attempt(partition)
        with self._lab.dagster() as dagster, suppress(DagsterDown):
            now = next((attempt for attempt in dagster.under_way() if attempt.id == met.id), None)
        if now is None or now.step != fault.phase:
            raise FaultMissed(f"{fault.phase} was over when the fault came")
        return now

    def _await_step(self, partition: str, steps: Sequence[str | None]) -> DagsterAttempt:
        """Wait until the attempt at this build is in one of these steps, and return it.

        Raises:
            FaultMissed: it went past them, or never came to them.
        """
        deadline = time.monotonic() + PHASE_SECONDS
        next_look = time.monotonic()
        with self._lab.dagster() as dagster:
            while (now := time.monotonic()) < deadline:
                attempt = self._observer.attempt(partition)
                if attempt is not None and attempt.step in steps:
                    return attempt
                # Between two attempts, there is none under way.
                if attempt is None and now >= next_look:
                    next_look = now + SETTLE_LOOK_SECONDS
                    with suppress(DagsterDown):
                        if self._over(dagster, partition):
                            raise FaultMissed(f"the run was over before it was seen in {steps[-1]}")
                self._pause(LOOK_SECONDS)
        raise FaultMissed(f"no run of the build came to {steps[-1]} in {PHASE_SECONDS:g} s")

    def _outlast(self, hits: HitCount, duration: FaultDuration, partition: str) -> float:
        """Wait until a fault has lasted long enough; return how long that was, in seconds."""
        began = time.monotonic()
        while True:
            seconds = time.monotonic() - began
            enough = seconds >= duration.least_seconds and hits.count >= duration.enough_hits
            if enough or seconds >= duration.most_seconds:
                return seconds
            if duration.ends_with_run and self._observer.attempt(partition) is None:
                return seconds
            self._pause(LOOK_SECONDS)

    def _settle(self, partition: str, kind: FaultKind | None) -> BuildFacts:
        """Wait until no attempt at this build can do anything any more, and nothing of it is left."""
        began = time.monotonic()
        over_since: float | None = None
        with self._lab.dagster() as dagster:
            while True:
                self._pause(SETTLE_LOOK_SECONDS)
                now = time.monotonic()
                try:
                    over = self._over(dagster, partition)
                    over_since = (over_since or now) if over else None
                    settled = over and self._clean(partition)
                    late = now - began > SETTLE_SECONDS or (over_since and now - over_since > 2 * ORPHAN_SECONDS)
                    if settled or late:
                        return replace(self._facts(dagster, partition, kind), settled=settled)
                except (DagsterDown, SandboxError):
                    if now - began > 2 * SETTLE_SECONDS:
                        raise

    def _await_quiet(self, dagster: AttemptsApi) -> None:
        """Wait until nothing is under way anywhere; after too long, the judgement says what is."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            with suppress(DagsterDown, SandboxError):
                quiet = not dagster.under_way() and not dagster.retries_due()
                if quiet and not self._lab.instances() and not self._lab.open_mlflow_runs():
                    return
            self._pause(SETTLE_LOOK_SECONDS)

    def _facts(self, dagster: AttemptsApi, partition: str, kind: FaultKind | None) -> BuildFacts:
        return replace(
            self._lab.facts(dagster, partition),
            kind=kind,
            orphaned_seconds=self._observer.orphaned_seconds(partition),
            unattended_seconds=self._observer.unattended_seconds(partition),
        )

    def _over(self, dagster: AttemptsApi, partition: str) -> bool:
        attempts = dagster.attempts(partition)
        return bool(attempts) and not any(attempt.live for attempt in attempts)

    def _clean(self, partition: str) -> bool:
        return (
            all(instance.partition != partition for instance in self._lab.instances())
            and partition not in self._lab.open_mlflow_runs().values()
            and not list(self._lab.left_processes())
        )

    def _pause(self, seconds: float) -> None:
        """Wait, unless the campaign is being ended by a signal or an error elsewhere."""
        if self._ended.wait(seconds):
            raise SandboxError("the campaign was ended before its time")
