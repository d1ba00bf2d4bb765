"""One Dagster run's try at training one build: each step looks for what is there before making anything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from orchestrator import names
from orchestrator.errors import BuildBusy, CapacityUnavailable, Ec2Error, InstanceLost, OrchestratorError, TrainingError
from orchestrator.names import Ec2Tag
from orchestrator.pipeline.training import lease
from orchestrator.pipeline.training.budget import Budget, Grant
from orchestrator.pipeline.training.capacity import CapacityWait
from orchestrator.pipeline.training.deadline import GRACE, Deadline
from orchestrator.pipeline.training.environment import (
    job_files,
    training_environment,
    with_model_check,
    with_run_tags,
)
from orchestrator.pipeline.training.failure import timed_out
from orchestrator.pipeline.training.finished import FinishedTraining, Usage
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.pipeline.training.mlflow_run import TrackedRun
from orchestrator.pipeline.training.mlproject import require_runnable
from orchestrator.pipeline.training.on_instance import OnInstance
from orchestrator.pipeline.training.plan import Plan
from orchestrator.pipeline.training.private_index import require_index_login
from orchestrator.pipeline.training.reach import require_mlflow_in_reach
from orchestrator.pipeline.training.run_history import Liveness
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance, Owner, build_tags, fingerprint, timestamp
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
    from_sensor: bool

    def liveness(self, run_id: str) -> Liveness:
        """Whether this run is queued, starting or under way."""

    def rival(self) -> str | None:
        """The run that began to train this very build before us, and is still at it."""

    def trained(self, mlflow_run: str) -> None:
        """Keep, where an MLflow that is away does not matter, that the training process exited 0."""

    def launched(self, record: LaunchRecord) -> None:
        """Keep, out of reach of whoever may tag instances, what was launched or taken over."""

    def launched_before(self) -> Collection[LaunchRecord]:
        """What the runs that this one tries again have launched last."""

    def launch_of(self, instance: Instance) -> LaunchRecord | None:
        """What a run that trains this build has kept of this very instance; None: nothing that agrees with its tags."""

    def ended_late(self) -> bool:
        """Whether the janitor has ended this run's training, or the one that it was to take over, at its deadline."""


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
        loads_model: the model is loaded on the instance, before that is given back.
        grace: how long after its deadline a training may be ended by its own machine, before we end that.

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
        loads_model: bool = False,
        grace: timedelta = GRACE,
    ) -> None:
        self.plan = plan
        self.ending = False
        self._settings = settings
        self._ec2 = ec2
        self._ec2_once = ec2.with_policy(retry.EC2_ONE_TRY)
        self._mlflow = mlflow
        self._connect = connect
        self._run = run
        self._write = write
        self._loads_model = loads_model and settings.project.model_check_minutes > 0
        self._grace = grace
        self._environment = training_environment(settings)
        self._tracked = TrackedRun(
            mlflow,
            settings.mlflow,
            plan,
            deployment=settings.machine.deployment,
            dagster_run=run.run_id,
            root_run=run.root_run_id,
            trained=run.trained_before,
            from_sensor=run.from_sensor,
            choice=settings.project.model_choice,
        )
        self._instance: Instance | None = None
        self._record: LaunchRecord | None = None
        self._deadline: Deadline | None = None
        self._usage: Usage | None = None
        self._ready = False
        self._trained = False
        self._open = False
        self._launches = 0
        self._losses = 0
        self._types: Sequence[str] = [plan.instance_type] if plan.instance_type else settings.machine.instance_types
        self._was_enlarged = False
        self._budget = Budget(settings.machine, ec2=ec2, mlflow=mlflow)
        self._spent = 0.0
        self._lease = ExitStack()
        self._lease.enter_context(lease.renewed(self.renew_lease))

    def check(self) -> Plan:
        """Find out what would make this training fail later, while it costs nothing.

        Raises:
            OrchestratorError: the experiment, the private key or another precondition is not there.
        """
        private_key(self._settings.ssh)
        require_known_hosts(self._settings.ssh)
        self._ec2_once.require_usable_subnets()
        require_mlflow_in_reach(self._environment["MLFLOW_TRACKING_URI"], ec2=self._ec2.address)
        job_files(self._environment, self._settings)
        require_index_login(self._settings, self._environment)
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
            TrainingTimedOut: what this attempt was to take over has run past its deadline.
            Ec2Error: none can be had, or it does not become ready.
            MlflowError: the run cannot be created; then nothing was launched.
        """
        if rival := self._run.rival():
            raise self._busy(rival)
        if self._tracked.already_trained():
            self._trained = True
            if self._run.trained_before is None:
                self._run.trained(self._tracked.open())
            return None
        if self._run.ended_late():
            raise timed_out(f"build {self.plan.partition}", self.plan.max_minutes)
        self._open = True
        try:
            return self._survive_losses(self._ready_instance)
        except BaseException as error:
            self.abandon(error)
            raise

    def _ready_instance(self) -> Instance:
        if self._instance is not None and self._ready:
            return self._instance
        waiting = self._capacity_wait()
        while True:
            try:
                instance = self._instance or self._adopt() or self._launch()
                key = instance.tags.get(Ec2Tag.HOST_KEY)
                ready = self._ec2.wait_until_ready(instance)
            except CapacityUnavailable as refusal:
                self._instance, self._record, self._deadline = None, None, None
                waiting.pause(refusal)
                continue
            # The key that we know: the tag may have been changed while we waited.
            self._instance = ready if key is None else replace(ready, tags={**ready.tags, Ec2Tag.HOST_KEY: key})
            self._ready = True
            return self._instance

    def _capacity_wait(self) -> CapacityWait:
        machine = self._settings.machine
        return CapacityWait(
            self._ec2_once,
            types=self._types,
            markets=machine.market,
            policy=retry.CAPACITY.with_total(machine.capacity_patience_minutes * 60),
        )

    def _adopt(self) -> Instance | None:
        """Take over what an earlier attempt of this build left running.

        An instance's tags can be copied and changed: only one that its Dagster run has named is believed.
        """
        adopted: Instance | None = None
        tagged = self._tagged()
        tagged += self._unlisted({instance.id for instance in tagged})
        for found in reversed(tagged):
            if self._is_anothers(found):
                self._open = False
                raise self._busy(found.dagster_run)
            if self._run.liveness(found.dagster_run) is Liveness.UNKNOWN:
                _log.warning(
                    f"Leaving instance {found.id} to its deadline: Dagster knows no run "
                    f"{found.dagster_run or '(it names none)'}, so only its own tags say whose it is"
                )
                continue
            record = self._run.launch_of(found)
            if adopted is None and record is not None and self._tracked.adopt(record.mlflow_run):
                adopted, self._record = found, record
            else:
                _log.info(f"Terminating instance {found.id}, which is left from an attempt that is over")
                self._ec2.terminate(found.id)
        if adopted is None or self._record is None:
            return None
        _log.info(
            f"Adopting instance {adopted.id} and MLflow run {adopted.mlflow_run} of run {adopted.dagster_run}, "
            "which is over"
        )
        self._keep(self._record)
        self._ec2.take_over(adopted.id, self._owner(self._record.mlflow_run, power_off_at=self._record.expires_at))
        described = self._ec2.describe(adopted.id)
        self._instance = replace(described, tags={**described.tags, Ec2Tag.HOST_KEY: adopted.host_key or ""})
        return self._instance

    def _unlisted(self, listed: Collection[str]) -> list[Instance]:
        """What an earlier attempt of this run has launched and no list names; what does not say so itself is ended."""
        tags = build_tags(
            deployment=self._settings.machine.deployment, pipeline=self.plan.pipeline, partition=self.plan.partition
        )
        behind = []
        for record in self._run.launched_before():
            instance = None if record.instance_id in listed else self._ec2.look(record.instance_id)
            if instance is None or not instance.alive:
                continue
            if tags.items() <= instance.tags.items():
                behind.append(instance)  # AWS's list is behind its answers about one instance
            else:
                _log.warning(f"Terminating instance {instance.id}, whose tags were changed: an earlier attempt has it")
                self._ec2.terminate(instance.id)
        return behind

    def _tagged(self) -> list[Instance]:
        """All instances that are alive and say that they are of this build, the oldest first."""
        return self._ec2.of_build(pipeline=self.plan.pipeline, partition=self.plan.partition)

    def _keep(self, record: LaunchRecord) -> None:
        minutes = self.plan.max_minutes if record.max_minutes is None else record.max_minutes
        self._deadline = Deadline.of(record.expires_at - self._grace, minutes=minutes, grace=self._grace)
        self._record = record
        self._run.launched(record)

    def _launch(self) -> Instance:
        if self._run.liveness(self._run.run_id) is not Liveness.ALIVE:
            raise BuildBusy(
                f"run {self._run.run_id} is over by Dagster's books: its lease had expired, or it was cancelled, "
                "before its worker went on. It launches nothing; what it began is left to the run that retries it"
            )
        types = self._within_budget()
        mlflow_run = self._tracked.open()
        self._launches += 1  # each round has tokens and a deadline of its own: neither is older than its launch
        owner = self._owner(mlflow_run, power_off_at=datetime.now(UTC) + self._most_time)
        self._instance = self._ec2.launch(
            owner,
            attempt=f"{self._run.run_id}-{self._launches}",
            instance_types=types,
        )
        _log.info(f"Launched instance {self._instance.id} ({self._instance.type}, {self._instance.market})")
        self._keep(
            LaunchRecord(
                instance_id=self._instance.id,
                host_key=fingerprint(self._instance.host_key),
                mlflow_run=mlflow_run,
                expires_at=owner.power_off_at,
                max_minutes=self.plan.max_minutes,
            )
        )
        self._tracked.launched(self._instance)
        return self._instance

    def _within_budget(self) -> Sequence[str]:
        """The instance types that the ceilings in USD leave.

        Raises:
            BudgetExceeded: there is none.
        """

        def grant() -> Grant:
            minutes = self._most_time.total_seconds() / 60
            return self._budget.grant(self._types, minutes=minutes, spent=self._spent, mlflow_run=self._tracked.id)

        granted = grant()
        if (
            granted.usd is not None
        ):  # once more, when others see us: two launches at once must not both take what is left
            self._tracked.reserve(granted.usd)
            granted = grant()
        return granted.types

    @property
    def _most_time(self) -> timedelta:
        return timedelta(minutes=self.plan.max_minutes) + self._grace

    def _owner(self, mlflow_run: str, *, power_off_at: datetime) -> Owner:
        return Owner(
            ssh_port=self._settings.ssh.port,
            pipeline=self.plan.pipeline,
            partition=self.plan.partition,
            dagster_run=self._run.run_id,
            mlflow_run=mlflow_run,
            power_off_at=power_off_at,
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
            TrainingError: it did not end well, or ran past its deadline; the instance is terminated and the MLflow
                run closed.
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
        """Begin anew when the instance goes away under the work, or is too small for it."""
        while True:
            try:
                return work()
            except InstanceLost as loss:
                if (self._deadline is not None and self._deadline.passed) or self._run.ended_late():
                    minutes = self._deadline.minutes if self._deadline else self.plan.max_minutes
                    raise timed_out(f"build {self.plan.partition}", minutes) from loss
                self._losses += 1
                if self._losses > self._settings.project.instance_losses:
                    raise
                _log.warning(f"Beginning anew on another instance: {loss}")
                self._begin_anew(str(loss))
            except TrainingError as error:
                if not self._enlarged(error):
                    raise
                self._begin_anew(str(error).partition("\n")[0])

    def _enlarged(self, error: TrainingError) -> bool:
        """Whether a larger type is worth a try, as RETRY_OOM_ON_LARGER says; then it is what is launched next."""
        wanted = self._settings.project.retry_oom_on_larger and error.out_of_memory and not self._was_enlarged
        if not wanted or self._instance is None:
            return False
        used = self._instance.type
        larger = self._ec2.with_more_memory(used, self._settings.machine.instance_types)
        if not larger:
            _log.warning(f"Not trying a larger type: INSTANCE_TYPE names none that has more memory than {used}")
            return False
        reason = str(error).partition("\n")[0]
        _log.warning(f"Beginning anew on {larger[0]}, with more memory than {used} (RETRY_OOM_ON_LARGER): {reason}")
        self._types, self._was_enlarged = larger, True
        return True

    def _begin_anew(self, reason: str) -> None:
        usage = None
        if self._instance is not None:
            self._ec2.terminate(self._instance.id)  # one that was only stopped still costs money
            usage = self._use_of(self._instance)
            self._spent += usage.usd or 0
        self._tracked.drop(reason, usage)
        self._instance, self._record, self._deadline, self._ready = None, None, None, False

    def _train_on(self, instance: Instance) -> str:
        mlflow_run = self._tracked.open()
        if self._deadline is None:
            raise RuntimeError("an instance without a deadline is neither launched nor taken over")
        environment = with_run_tags(self._environment, self._tracked.marks(instance))
        if self._loads_model:
            left = (self._deadline.at - datetime.now(UTC)).total_seconds()
            environment = with_model_check(environment, self._settings, left=left)
        training = OnInstance(
            instance=instance,
            plan=self.plan,
            read=self._settings,
            mlflow_run=mlflow_run,
            deadline=self._deadline,
            environment=environment,
            ec2=self._ec2_once,
            write=self._write,
            keep=lambda file: self._mlflow.log_artifact(mlflow_run, names.OUTPUT_ARTIFACT, file),
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
            found = [instance for instance in self._tagged() if self._run.launch_of(instance)]
            if not found:
                self._open = False
                return None
            instance = found[-1]
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

    @property
    def patient_mlflow(self) -> Mlflow:
        """MLflow, waited for as MLFLOW_PATIENCE_MINUTES says: for what follows the training."""
        return self._tracked.patient_mlflow

    # ---- when it goes wrong

    def abandon(self, error: BaseException) -> None:
        """Give the instance back and close the MLflow run, whatever was going on; safe to call twice.

        Args:
            error: why; ends up in the MLflow run's tags.
        """
        if not self._open:
            return
        self.ending = True
        usage: Usage | None = None
        try:
            found = {instance.id: instance for instance in self._tagged()}
            if self._instance is not None:
                found.setdefault(self._instance.id, self._instance)
            others = [instance for instance in found.values() if self._is_anothers(instance)]
            for instance in found.values():
                if instance in others:
                    _log.warning(
                        f"Leaving instance {instance.id} to run {instance.dagster_run}, which it belongs to now"
                    )
                elif instance.id == (self._instance and self._instance.id) or self._may_end(instance):
                    _log.info(f"Terminated instance {instance.id} ({self._ec2.terminate(instance.id) or 'gone'})")
                    if instance.mlflow_run == self._tracked.id:
                        usage = self._use_of(instance)
            if others:
                self._open = False
                return
        except Ec2Error as away:  # it must not hide what went wrong first
            _log.warning(f"Leaving what is left of this build's instance to the janitor: {away}")
        self._instance, self._open = None, False
        if self._trained:
            self._tracked.close("FINISHED", reason="the training process exited 0", usage=usage)
            return
        reason = str(error).partition("\n")[0] or "the Dagster run was cancelled"
        self._tracked.close("FAILED" if isinstance(error, OrchestratorError) else "KILLED", reason=reason, usage=usage)

    def _may_end(self, instance: Instance) -> bool:
        """Whether an instance of this build is left of this run, or of one that it tries again."""
        return instance.dagster_run == self._run.run_id or self._run.launch_of(instance) is not None

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
