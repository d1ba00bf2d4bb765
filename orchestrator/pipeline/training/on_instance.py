"""One training on one instance: started or found under way, followed to its end, and explained when it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import IO

from orchestrator import names
from orchestrator.errors import (
    Ec2Error,
    InstanceLost,
    OrchestratorError,
    SshError,
    SshUnreachable,
    TrainingTimedOut,
)
from orchestrator.pipeline.training.cause import READ_LINES
from orchestrator.pipeline.training.command import mlflow_run_command
from orchestrator.pipeline.training.deadline import Deadline
from orchestrator.pipeline.training.environment import job_files, secrets_in
from orchestrator.pipeline.training.failure import failure, timed_out
from orchestrator.pipeline.training.plan import Plan
from orchestrator.remote import RemoteTraining, TrainingExit, TrainingOutput, whole_output
from orchestrator.remote.output import MB
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.retry import EC2, REMOTE_STOP
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.source import PipelineSettings

_log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 2
"""What the processes of a training that was cancelled get to end by themselves."""

PRIVATE_SECONDS = 30.0
"""How long a private address that nobody asked for is tried, of a machine that had the time to start."""

_YOUNG = timedelta(minutes=3)
"""From its launch on, an instance may still be given its keys and logins by cloud-init."""


def young_seconds(instance: Instance) -> float:
    """For how long from now on it may still be being set up; by two clocks, so it is never more than that is."""
    left = instance.launched_at + _YOUNG - datetime.now(UTC)
    return min(max(left, timedelta()), _YOUNG).total_seconds()


@dataclass(frozen=True)
class OnInstance:
    """The training of one MLflow run on one instance, which may go away under it.

    Attributes:
        instance: where.
        plan: what to train.
        read: the settings.
        mlflow_run: what the training fills.
        deadline: when it is ended: on the instance first; and by us, if it is still there when the grace is over.
        environment: the variables that it gets.
        ec2: asked whether the instance is still there; with little patience, for we ask again.
        write: takes the training's output as it comes: printable, masked, and MAX_LOG_MB of it at most.
        keep: takes the whole output, compressed, when there is more of it.
    """

    instance: Instance
    plan: Plan
    read: PipelineSettings
    mlflow_run: str
    deadline: Deadline
    environment: Mapping[str, str]
    ec2: Ec2
    write: Callable[[str], None]
    keep: Callable[[IO[bytes]], object]
    _addresses: list[str] = field(default_factory=list, init=False, repr=False)

    def train(self, ssh: Ssh) -> None:
        """Run the training to its end.

        Args:
            ssh: leads to the instance; opened here, as often as it takes.

        Raises:
            TrainingError: it did not end well; says why.
            TrainingTimedOut: it ran past its deadline, whatever it said or did; its instance is terminated.
            InstanceLost: the instance went away under it. No other failure is believed before EC2 was asked.
            SshError: the instance is there, and cannot be used.
        """
        with self.deadline.kept(self._end_instance, let_go=ssh.close):
            self._train(ssh)

    def _train(self, ssh: Ssh) -> None:
        remote = RemoteTraining(ssh, self.mlflow_run)
        most_bytes = round(self.read.project.max_log_mb * MB)
        output = TrainingOutput(self.write, secrets=secrets_in(self.environment, self.read), most_bytes=most_bytes)
        try:
            self._start(ssh, remote)
            training_exit = remote.follow(
                output.feed, check=lambda: self.check(ssh), most_behind=output.most_behind, skipped=output.skip
            )
        except SshError:
            self.check(ssh)  # a machine that shuts down refuses logins and kills commands; its address gets a new owner
            raise
        except OrchestratorError:
            raise
        except BaseException:
            self._stop(ssh)
            raise
        output.finish()
        if output.left_out:
            self._keep_whole(ssh, remote, most_bytes)
        if not training_exit.succeeded:
            self.check(ssh)  # a machine that is taken away ends its processes first
            if training_exit.kind == "rebooted":
                raise InstanceLost(
                    f"instance {self.instance.id} rebooted under the training, which ended with it: AWS moved it to "
                    "other hardware, it updated itself, or somebody restarted it"
                )
            raise self._explain(remote, training_exit, output)

    def _keep_whole(self, ssh: Ssh, remote: RemoteTraining, most_bytes: int) -> None:
        """Bring the whole output to where there is room for it; without it, the training is as good."""

        def follow(write: Callable[[str], None]) -> None:
            remote.follow(write, check=lambda: self.check(ssh))

        try:
            with whole_output(follow, secrets=secrets_in(self.environment, self.read), most_bytes=most_bytes) as file:
                self.keep(file)
        except (OrchestratorError, OSError) as error:
            _log.warning(f"Could not keep the whole output of the training: {error}")
        else:
            _log.info(f"Kept the whole output of the training as artifact {names.OUTPUT_ARTIFACT} of its MLflow run")

    def _end_instance(self) -> None:
        _log.error(f"Terminating instance {self.instance.id}: its training {self.deadline}, and nothing else ended it")
        self.ec2.with_policy(EC2).terminate(self.instance.id)

    def check(self, ssh: Ssh) -> None:
        """Find out whether it makes sense to go on, and where the instance is now.

        Args:
            ssh: connects to the address that EC2 names, from its next attempt on.

        Raises:
            InstanceLost: the instance is gone or going.
            TrainingTimedOut: whatever it does, its time is over.
        """
        if self.deadline.over:
            raise self._late()
        try:
            address = self.ec2.require_alive(self.instance.id).address
            known = self._addresses[-1] if self._addresses else self.instance.address
            if address and address != known:
                _log.info(f"New address of instance {self.instance.id}: {address}")
                self._addresses.append(address)
                ssh.move(address)
        except InstanceLost as loss:
            if self.deadline.passed:  # one of the deadline's other keepers
                raise self._late() from loss
            raise
        except Ec2Error as error:  # AWS does not answer either: that says nothing of the instance
            _log.warning(str(error))

    def _late(self) -> TrainingTimedOut:
        return timed_out(f"build {self.plan.partition}", self.deadline.minutes)

    def _start(self, ssh: Ssh, remote: RemoteTraining) -> None:
        """Start the training, or find it started; keep trying while the instance is there."""
        files = job_files(self.environment, self.read)
        command = mlflow_run_command(self.plan, self.read, mlflow_run=self.mlflow_run, files=files)
        patience = self.read.machine.ready_minutes * 60
        if not self._public_or_private_by_choice:
            patience = min(patience, max(young_seconds(self.instance), PRIVATE_SECONDS))
        give_up = time.monotonic() + patience
        while True:
            try:
                if not ssh.connected:
                    ssh.connect()
                if not remote.start(
                    command,
                    environment=self.environment,
                    deadline=self.deadline.at,
                    files=files,
                    user=self.read.machine.training_user,
                    check=lambda: self.check(ssh),
                ):
                    _log.info("Following the training, which is under way already")
                return
            except SshUnreachable as error:
                self.check(ssh)
                if time.monotonic() > give_up:
                    raise self._unreachable(error) from error

    @property
    def _public_or_private_by_choice(self) -> bool:
        return self.instance.public or self.read.machine.address == "private"

    def _unreachable(self, error: SshUnreachable) -> SshUnreachable:
        if self._public_or_private_by_choice:
            return error
        return SshUnreachable(
            f"instance {self.instance.id} has no public address, and we do not reach its private one: set SUBNET_ID to "
            f"a subnet that gives its instances public addresses, or run the orchestrator in their network, with "
            f"INSTANCE_ADDRESS=private ({error})"
        )

    def _stop(self, ssh: Ssh) -> None:
        """End a training that was cancelled before its instance is: one that goes on could call itself FINISHED."""
        if not ssh.connected:
            return  # it is not worth the time
        watchdog = threading.Timer(REMOTE_STOP.total_seconds, ssh.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            ending = RemoteTraining(ssh, self.mlflow_run, calls=REMOTE_STOP).stop(grace_seconds=STOP_GRACE_SECONDS)
            _log.info(f"Stopped the training on the instance ({ending.kind if ending else 'it had not begun'})")
        except BaseException as error:  # noqa: BLE001 - the first error counts, and the instance is given back at once
            _log.warning(f"Leaving the training to the end of its instance: {error}")
        finally:
            watchdog.cancel()

    def _explain(
        self, remote: RemoteTraining, training_exit: TrainingExit, output: TrainingOutput
    ) -> OrchestratorError:
        try:
            lines = remote.last_lines(READ_LINES)
        except SshError as error:
            lines = [f"(its last lines could not be fetched: {error})"]
        return failure(f"build {self.plan.partition}", training_exit, output.readable(lines))
