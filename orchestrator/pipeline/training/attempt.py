"""One Dagster run's try at training one build: each step looks for what is there before making anything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from orchestrator.errors import BuildBusy, Ec2Error, InstanceLost, OrchestratorError
from orchestrator.names import Ec2Tag
from orchestrator.pipeline.training import lease
from orchestrator.pipeline.training.environment import training_environment, with_run_tags
from orchestrator.pipeline.training.finished import FinishedTraining, Usage
from orchestrator.pipeline.training.mlflow_run import TrackedRun
from orchestrator.pipeline.training.mlproject import require_runnable
from orchestrator.pipeline.training.on_instance import GRACE, OnInstance
from orchestrator.pipeline.training.plan import Plan
from orchestrator.pipeline.training.run_history import Liveness
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance, Owner, timestamp
from orchestrator.resources.mlflow.client import Mlflow
from orchestrator.resources.ssh import Ssh, private_key, require_known_hosts
from orchestrator.settings.source import PipelineSettings

T = TypeVar("T")

_log = logging.getLogger(__name__)


class DagsterRun(Protocol):
    """What an attempt needs to know of Dagster's runs."""

    run_id: str
    root_run_id: str
    trained_before: str | None

    def liveness(self, run_id: str) -> Liveness:
        """Whether this run is queued, starting or under way."""

    def rival(self) -> str | None:
        """The run that began to train this very build before us, and is still at it."""

    def trained(self, mlflow_run: str) -> None:
        """Keep, where an MLflow that is away does not matter, that the training process exited 0."""


class Attempt:
    """Trains one planned build. Renews its lease on the instance from its making to `close`.

    Args:
        plan: what to do.
        settings: the pipeline's settings, read and checked.
        ec2: the instances.
        mlflow: the runs.
        connect: makes the SSH client of an instance.
        run: the Dagster run that this attempt is.
        write: takes the training's output as it comes, masked.

    Attributes:
        ending: it has begun to give back what it has, because something went wrong.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        settings: PipelineSettings,
        ec2: Ec2,
        mlflow: Mlflow,
        connect: Callable[[Instance], Ssh],
        run: DagsterRun,
        write: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.ending = False
        self._settings = settings
        self._ec2 = ec2
        self._ec2_once = ec2.with_policy(retry.EC2_ONE_TRY)
        self._connect = connect
        self._run = run
        self._write = write
        self._environment = training_environment(settings)
        self._tracked = TrackedRun(
            mlflow,
            settings.mlflow,
            plan,
            deployment=settings.machine.deployment,
            dagster_run=run.run_id,
            root_run=run.root_run_id,
            trained=run.trained_before,
            choice=settings.project.model_choice,
        )
        self._instance: Instance | None = None
        self._usage: Usage | None = None
        self._ready = False
        self._trained = False
        self._open = False
        self._launches = 0
        self._losses = 0
        self._lease = ExitStack()
        self._lease.enter_context(lease.renewed(self.renew_lease))

    def check(self) -> Plan:
        """Find out what would make this training fail later, while it costs nothing.

        Raises:
            OrchestratorError: the experiment, the private key or another precondition is not there.
        """
        private_key(self._settings.ssh)
        require_known_hosts(self._settings.ssh)
        experiment = self._tracked.require_experiment()
        require_runnable(self.plan)
        _log.info(
            f"Training build {self.plan.partition} of {self.plan.build.job}: {self.plan.project_uri} at "
            f"{self.plan.version}, into MLflow experiment {experiment!r}"
        )
        return self.plan

    # ---- provision

    def provision(self) -> Instance | None:
        """Find the instance of this build, or launch one, and wait until it can be used.

        Returns:
            The instance; None when an attempt before this one had trained the model already.

        Raises:
            BuildBusy: another live attempt has it.
            Ec2Error: none can be had, or it does not become ready.
            MlflowError: the run cannot be created; then nothing was launched.
        """
        if rival := self._run.rival():
            raise self._busy(rival)
        if self._tracked.already_trained():
            self._trained = True
            return None
        self._open = True
        try:
            return self._survive_losses(self._ready_instance)
        except BaseException as error:
            self.abandon(error)
            raise

    def _ready_instance(self) -> Instance:
        if self._instance is None or not self._ready:
            instance = self._instance or self._adopt() or self._launch()
            self._instance = self._ec2.wait_until_ready(instance)
            self._ready = True
        return self._instance

    def _adopt(self) -> Instance | None:
        """Take over what an earlier attempt of this build left running."""
        found = self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition)
        if found is None:
            return None
        owner = found.dagster_run
        if self._is_anothers(found):
            self._open = False
            raise self._busy(owner)
        if not found.mlflow_run or not self._tracked.adopt(found.mlflow_run):
            _log.info(f"Terminating instance {found.id}, which is left from an attempt that is over")
            self._ec2.terminate(found.id)
            return None
        _log.info(f"Adopting instance {found.id} and MLflow run {found.mlflow_run} of run {owner}, which is over")
        self._ec2.take_over(found.id, self._owner(found.mlflow_run, power_off_at=found.power_off_at))
        self._instance = self._ec2.describe(found.id)
        return self._instance

    def _launch(self) -> Instance:
        if self._run.liveness(self._run.run_id) is not Liveness.ALIVE:
            raise BuildBusy(
                f"run {self._run.run_id} is over by Dagster's books: its lease had expired, or it was cancelled, "
                "before its worker went on. It launches nothing; what it began is left to the run that retries it"
            )
        mlflow_run = self._tracked.open()
        self._launches += 1
        self._instance = self._ec2.launch(
            self._owner(mlflow_run, power_off_at=None),
            attempt=f"{self._run.run_id}-{self._launches}",
            instance_type=self.plan.instance_type,
        )
        _log.info(f"Launched instance {self._instance.id} ({self._instance.type}, {self._instance.market})")
        self._tracked.launched(self._instance)
        return self._instance

    def _owner(self, mlflow_run: str, *, power_off_at: datetime | None) -> Owner:
        return Owner(
            pipeline=self.plan.pipeline,
            partition=self.plan.partition,
            dagster_run=self._run.run_id,
            mlflow_run=mlflow_run,
            power_off_at=power_off_at or datetime.now(UTC) + timedelta(minutes=self.plan.max_minutes) + GRACE,
        )

    def _is_anothers(self, instance: Instance) -> bool:
        """Whether a live attempt other than this one uses it."""
        owner = instance.dagster_run
        if not owner or owner == self._run.run_id:
            return False
        liveness = self._run.liveness(owner)
        if liveness is Liveness.UNKNOWN:  # of another Dagster, or this one's database was lost: its lease decides
            return (instance.lease_until or instance.launched_at + lease.LEASE) > datetime.now(UTC)
        return liveness is Liveness.ALIVE

    def _busy(self, run_id: str) -> BuildBusy:
        return BuildBusy(
            f"build {self.plan.partition} is being trained by run {run_id}; wait for that run, or cancel it first"
        )

    # ---- train

    def train(self) -> str:
        """Run the training to its end, following its output; return the MLflow run's ID.

        Raises:
            TrainingError: it did not end well; the instance is terminated and the MLflow run closed.
            InstanceLost: the instance went away under us more often than INSTANCE_LOSSES.
        """
        if self._instance is None and self.provision() is None:
            return self._tracked.open()
        try:
            return self._survive_losses(lambda: self._train_on(self._ready_instance()))
        except BaseException as error:
            self.abandon(error)
            raise

    def _survive_losses(self, work: Callable[[], T]) -> T:
        """Begin anew when the instance goes away under the work."""
        while True:
            try:
                return work()
            except InstanceLost as loss:
                self._losses += 1
                if self._losses > self._settings.project.instance_losses:
                    raise
                _log.warning(f"Beginning anew on another instance: {loss}")
                if self._instance is not None:
                    self._ec2.terminate(self._instance.id)  # one that was only stopped still costs money
                self._tracked.drop(str(loss))
                self._instance, self._ready = None, False

    def _train_on(self, instance: Instance) -> str:
        mlflow_run = self._tracked.open()
        training = OnInstance(
            instance=instance,
            plan=self.plan,
            read=self._settings,
            mlflow_run=mlflow_run,
            deadline=self._owner(mlflow_run, power_off_at=instance.power_off_at).power_off_at - GRACE,
            environment=with_run_tags(self._environment, self._tracked.marks(instance)),
            ec2=self._ec2_once,
            write=self._write,
        )
        with self._connect(instance) as ssh:
            training.train(ssh)
        _log.info("Training exited with status 0")
        self._trained = True
        self._run.trained(mlflow_run)
        return mlflow_run

    # ---- terminate and record

    def terminate(self) -> Usage | None:
        """Give the instance back; return what it was used for, or None when there is none any more.

        Raises:
            BuildBusy: this attempt was taken for dead, and another one uses the instance now.
        """
        try:
            return self._give_back()
        except OrchestratorError:
            self._open = False  # another's, or AWS was asked for minutes: the janitor ends it, and the model is trained
            raise
        except BaseException as error:
            self.abandon(error)
            raise

    def _give_back(self) -> Usage | None:
        if self._instance is not None:
            instance = self._ec2.describe(self._instance.id)
        else:
            found = self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition)
            if found is None:
                self._open = False
                return None
            instance = found
        if self._is_anothers(instance):
            raise self._busy(instance.dagster_run)
        self._instance, self._open = instance, True  # ours to end, also when we are cancelled
        state = self._ec2.terminate(instance.id) or "gone"
        self._instance, self._open = None, False
        self._usage = self._use_of(instance)
        _log.info(f"Terminated instance {instance.id} after {self._usage.minutes:.1f} min ({state})")
        self._tracked.used(self._usage)
        return self._usage

    def _use_of(self, instance: Instance) -> Usage:
        minutes = (datetime.now(UTC) - instance.launched_at).total_seconds() / 60
        hourly = self._ec2.hourly_usd(instance)
        return Usage(
            instance_id=instance.id,
            instance_type=instance.type,
            market=instance.market,
            minutes=minutes,
            usd=None if hourly is None else hourly * minutes / 60,
        )

    def finished(self) -> FinishedTraining:
        """All that MLflow holds of the training; waits for an MLflow that is away."""
        return self._tracked.finished(self._usage)

    # ---- when it goes wrong

    def abandon(self, error: BaseException) -> None:
        """Give the instance back and close the MLflow run, whatever was going on; safe to call twice.

        Args:
            error: why; ends up in the MLflow run's tags.
        """
        if not self._open:
            return
        self.ending = True
        try:
            found = self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition) or self._instance
            if found is not None and self._is_anothers(found):
                _log.warning(f"Leaving instance {found.id} to run {found.dagster_run}, which it belongs to now")
                self._open = False
                return
            if found is not None:
                _log.info(f"Terminated instance {found.id} ({self._ec2.terminate(found.id) or 'gone'})")
        except Ec2Error as away:  # it must not hide what went wrong first
            _log.warning(f"Leaving what is left of this build's instance to the janitor: {away}")
        self._instance, self._open = None, False
        if self._trained:
            self._tracked.close("FINISHED", reason="the training process exited 0")
            return
        reason = str(error).partition("\n")[0] or "the Dagster run was cancelled"
        self._tracked.close("FAILED" if isinstance(error, OrchestratorError) else "KILLED", reason=reason)

    def close(self) -> None:
        """Last net, at the end of the Dagster run: nothing that this attempt opened stays."""
        try:
            self.abandon(sys.exc_info()[1] or KeyboardInterrupt("the Dagster run ended early"))
        finally:
            self._lease.close()

    def renew_lease(self) -> None:
        """Say on the instance that this attempt is alive."""
        if (instance := self._instance) is not None and self._open:
            self._ec2_once.tag(instance.id, {Ec2Tag.LEASE_UNTIL: timestamp(lease.until())})
