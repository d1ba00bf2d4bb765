"""Faults, really done: processes killed, servers taken away, connections cut, machines terminated."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from urllib.parse import parse_qs

import tenacity

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator.sandbox.chaos_dagster import Attempt, kill
from orchestrator.sandbox.chaos_plan import Fault, Kind
from orchestrator.sandbox.chaos_proxy import Answer, Proxy, Request, Weather
from orchestrator.sandbox.chaos_site import Site
from orchestrator.sandbox.ec2_api import Fault as AwsFault

LASTING: dict[Kind, Weather] = {
    Kind.AWS_DOWN: Weather.REFUSING,
    Kind.JENKINS_DOWN: Weather.REFUSING,
    Kind.JENKINS_SLOW: Weather.SLOW,
    Kind.JENKINS_HTML: Weather.HTML,
    Kind.MLFLOW_DOWN: Weather.REFUSING,
    Kind.MLFLOW_RESTARTED: Weather.REFUSING,
    Kind.MLFLOW_SLOW: Weather.SLOW,
    Kind.MLFLOW_HTML: Weather.HTML,
}
"""The kinds that last for some time, and what the server's clients see of them."""

AWS_ANSWERS = {
    Kind.AWS_ERRORS: AwsFault("InternalError", status=500),
    Kind.AWS_THROTTLING: AwsFault("RequestLimitExceeded", status=503),
    Kind.AWS_NO_CAPACITY: AwsFault("InsufficientInstanceCapacity", status=500),
}


INSTANCE_SECONDS = 5.0
MLFLOW_STARTS_SECONDS = 25.0
"""What a restart of MLflow takes on a busy machine."""


class Missed(Exception):
    """There was nothing (left) that this fault could harm; says what."""


class Injector:
    """Does the faults.

    Args:
        site: what is harmed.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._mlflow = threading.Lock()

    def held(self, phase: str) -> AbstractContextManager[None]:
        """Hold up a phase that is too short to be met otherwise, until the context ends."""
        if phase == "resolve":
            return self._site.mlflow.held(lambda request: request.path.partition("?")[0].endswith("/experiments/get"))
        if phase == "terminate":
            return self._site.aws.held(lambda request: _action(request) == "TerminateInstances")
        if phase == "record":
            return self._site.mlflow.held(lambda request: "/metrics/get-history" in request.path)
        return nullcontext()

    def start(self, fault: Fault, *, attempt: Attempt | None) -> AbstractContextManager[object]:
        """Do it; what lasts, lasts as long as the context that is returned.

        Args:
            fault: what to do.
            attempt: the run of the build that is meant; None when there is none yet.

        Raises:
            Missed: there is nothing to do it to.
        """
        match fault.kind:
            case Kind.WORKER_KILLED:
                self._kill_worker(_required(attempt))
            case Kind.DAEMON_KILLED:
                _met(kill(self._site.processes.daemon()), "the daemon is just being started")
            case Kind.CODE_SERVER_KILLED:
                _met(kill(self._site.processes.code_servers()), "the code server is just being started")
            case Kind.EVERYTHING_KILLED:
                kill(self._site.processes.everything())
            case Kind.SSH_CUT:
                self._on_instance(attempt, self._site.stack.ec2.cut_connections)
            case Kind.SSHD_AWAY:
                self._on_instance(
                    attempt, lambda one: self._site.stack.ec2.refuse_connections(one, seconds=fault.seconds)
                )
            case Kind.TRAFFIC_SWALLOWED:
                self._on_instance(attempt, lambda one: self._site.stack.ec2.swallow_traffic(one, seconds=fault.seconds))
            case Kind.INSTANCE_TERMINATED:
                self._on_instance(attempt, self._site.stack.ec2.terminate_from_outside)
            case Kind.AWS_ERRORS | Kind.AWS_THROTTLING:
                self._site.aws.spoil(_aws_answer(fault.kind), times=fault.times)
            case Kind.AWS_NO_CAPACITY:
                self._site.aws.spoil(
                    _aws_answer(fault.kind), times=1, applies=lambda request: _action(request) == "RunInstances"
                )
            case Kind.CANCELLED:
                self._cancel(_required(attempt))
            case Kind.TRAINING_FAILS:
                pass  # the campaign has told the training beforehand
            case _:
                return self._weather(fault)
        return nullcontext()

    def lasts(self, fault: Fault) -> float:
        """For how many seconds it may last now.

        Raises:
            Missed: the server has just been away for as long as its clients must bear.
        """
        if fault.kind not in LASTING:
            return 0
        bearable = self._proxy(fault).bearable_seconds()
        if fault.kind is Kind.MLFLOW_RESTARTED:
            bearable -= MLFLOW_STARTS_SECONDS
        if bearable < 1:
            raise Missed("the server has just been away for a minute")
        return min(fault.seconds, bearable)

    def _proxy(self, fault: Fault) -> Proxy:
        proxies = {"AWS": self._site.aws, "Jenkins": self._site.jenkins, "MLflow": self._site.mlflow}
        return proxies[fault.kind.partition(" ")[0]]

    def _weather(self, fault: Fault) -> AbstractContextManager[object]:
        exits = ExitStack()
        exits.enter_context(self._proxy(fault).weather(LASTING[fault.kind]))
        if fault.kind is Kind.MLFLOW_RESTARTED:
            exits.enter_context(self._mlflow_stopped())
        return exits

    @contextlib.contextmanager
    def _mlflow_stopped(self) -> Iterator[None]:
        with self._mlflow:
            self._site.stack.mlflow.close()
            try:
                yield
            finally:
                self._site.stack.mlflow.__enter__()

    def _kill_worker(self, attempt: Attempt) -> None:
        with self._site.books() as books:
            pid = books.worker(attempt.id)
        worker = self._site.processes.worker(pid) if pid is not None else None
        if worker is None:
            raise Missed("the run's worker has ended")
        _met(kill([worker]), "the run's worker has just ended")

    def _cancel(self, attempt: Attempt) -> None:
        try:
            with self._site.books() as books:
                books.cancel(attempt.id)
        except DagsterDown as error:
            raise Missed(f"Dagster did not cancel the run: {error}") from error

    def _on_instance(self, attempt: Attempt | None, harm: Callable[[str], object]) -> None:
        """Harm the instance of a run; one that is being provisioned is there, and up, in a few seconds."""
        partition = _required(attempt).partition

        def try_it() -> None:
            instance = next((one for one in self._site.instances() if one.partition == partition), None)
            if instance is None:
                raise SandboxError("there is no instance")
            harm(instance.id)

        patient = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SandboxError),
            stop=tenacity.stop_after_delay(INSTANCE_SECONDS),
            wait=tenacity.wait_fixed(0.1),
            reraise=True,
        )
        try:
            patient(try_it)
        except SandboxError as error:
            raise Missed(str(error)) from error


def _required(attempt: Attempt | None) -> Attempt:
    if attempt is None:
        raise Missed("there is no run of this build")
    return attempt


def _met(killed: list[int], otherwise: str) -> None:
    if not killed:
        raise Missed(otherwise)


def _action(request: Request) -> str:
    return parse_qs(request.body.decode(errors="replace")).get("Action", [""])[0]


def _aws_answer(kind: Kind) -> Answer:
    fault = AWS_ANSWERS[kind]
    return Answer(fault.status, fault.body(), "text/xml")
