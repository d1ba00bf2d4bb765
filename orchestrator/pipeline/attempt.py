"""One Dagster run's try at training one build: each step looks for what is there before making anything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from orchestrator.errors import (
    BuildBusy,
    MlflowError,
    MlflowNotFound,
    OrchestratorError,
    TrainingFailed,
    TrainingLost,
)
from orchestrator.pipeline.curves import curve_metrics
from orchestrator.pipeline.outcome import FinishedTraining, Usage, failure
from orchestrator.pipeline.plan import Plan, secrets_in, training_environment
from orchestrator.remote.masking import Masker
from orchestrator.remote.training import RemoteTraining
from orchestrator.resources.ec2 import Ec2, Instance, Lease
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.resources.ssh import Ssh
from orchestrator.resources.ssh_keys import private_key
from orchestrator.settings import PipelineSettings, Settings

GRACE = timedelta(minutes=1)
"""Between the training's deadline and the machine's own: the time to fetch the last output and say why."""


class DagsterRun(Protocol):
    """What an attempt needs to know of Dagster's runs."""

    run_id: str
    root_run_id: str

    def is_live(self, run_id: str) -> bool:
        """Whether this run is queued, starting or under way."""

    def rival(self) -> str | None:
        """The run that began to train this very build before us, and is still at it."""


class Attempt:
    """Trains one planned build.

    Args:
        plan: what to do.
        settings: the pipeline's settings.
        read: the same, read and checked.
        ec2: the instances.
        mlflow: the runs.
        connect: makes the SSH client of an instance.
        run: the Dagster run that this attempt is.
        log: where progress is told.
        write: takes the training's output as it comes, masked.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        settings: Settings,
        read: PipelineSettings,
        ec2: Ec2,
        mlflow: Mlflow,
        connect: Callable[[Instance], Ssh],
        run: DagsterRun,
        log: logging.Logger,
        write: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self._read = read
        self._ec2 = ec2
        self._mlflow = mlflow
        self._connect = connect
        self._run = run
        self._log = log
        self._write = write
        self._environment = training_environment(settings, read)
        self._mlflow_run_id: str | None = None
        self._instance: Instance | None = None
        self._open = False
        self._launches = 0

    # ---- resolve

    def check(self) -> Plan:
        """Find out what would make this training fail later, while it costs nothing.

        Raises:
            OrchestratorError: the experiment, the private key or another precondition is not there.
        """
        private_key(self._read.ssh)
        experiment = self._mlflow.experiment(self._read.mlflow.experiment_id)
        self._log.info(
            f"build {self.plan.partition} of {self.plan.build.job}: {self.plan.project_uri} at {self.plan.version}, "
            f"into MLflow experiment {experiment.name!r}"
        )
        return self.plan

    # ---- provision

    def provision(self) -> Instance:
        """Find the instance of this build, or launch one, and wait until it can be used.

        Raises:
            BuildBusy: another live attempt has it.
            Ec2Error: none can be had, or it does not become ready.
            MlflowError: the run cannot be created; then nothing was launched.
        """
        if rival := self._run.rival():
            raise BuildBusy(
                f"build {self.plan.partition} is being trained by run {rival}; wait for it, or cancel it first"
            )
        self._open = True
        try:
            instance = self._instance or self._adopt() or self._launch()
            self._instance = self._ec2.wait_until_ready(instance, on_progress=self._log.info)
        except BaseException as error:
            self.abandon(error)
            raise
        return self._instance

    def _adopt(self) -> Instance | None:
        """Take over what an earlier attempt of this build left running."""
        found = self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition)
        if found is None:
            return None
        owner = found.dagster_run
        if owner and owner != self._run.run_id and self._run.is_live(owner):
            self._open = False
            raise BuildBusy(
                f"build {self.plan.partition} is being trained by run {owner} on {found.id}; "
                "wait for that run, or cancel it first"
            )
        run = self._unfinished_run(found.mlflow_run)
        if run is None:
            self._log.info(f"{found.id} is left from an attempt that is over; terminating it")
            self._ec2.terminate(found.id)
            return None
        self._log.info(f"adopting {found.id} and MLflow run {run.id} of run {owner}, which is over")
        self._mlflow_run_id = run.id
        self._mlflow.set_tags(run.id, {"dagster_run_id": self._run.run_id})
        self._ec2.take_over(found.id, self._lease(run.id, expires_at=found.expires_at))
        return self._ec2.describe(found.id)

    def _unfinished_run(self, run_id: str | None) -> Run | None:
        """The MLflow run, if it is still open and was made for exactly this training."""
        if not run_id:
            return None
        try:
            run = self._mlflow.run(run_id)
        except MlflowNotFound:
            return None
        return run if run.status == "RUNNING" and run.has(self.plan.identity()) else None

    def _launch(self) -> Instance:
        run_id = self._open_mlflow_run()
        self._launches += 1
        instance = self._ec2.launch(
            self._lease(run_id, expires_at=None),
            attempt=f"{self._run.run_id}-{self._launches}",
            instance_type=self.plan.instance_type,
            on_progress=self._log.info,
        )
        self._instance = instance
        self._log.info(f"launched {instance.id} ({instance.type}, {instance.market})")
        self._mlflow.set_tags(
            run_id,
            {
                "ec2.instance_id": instance.id,
                "ec2.instance_type": instance.type,
                "ec2.market": instance.market,
            },
        )
        return instance

    def _lease(self, mlflow_run: str, *, expires_at: datetime | None) -> Lease:
        return Lease(
            pipeline=self.plan.pipeline,
            partition=self.plan.partition,
            dagster_run=self._run.run_id,
            mlflow_run=mlflow_run,
            expires_at=expires_at or datetime.now(UTC) + timedelta(minutes=self.plan.max_minutes) + GRACE,
        )

    def _open_mlflow_run(self) -> str:
        """Make the MLflow run before the machine, so that its ID is known whatever happens later."""
        if self._mlflow_run_id is None:
            tags = self.plan.tags(dagster_run=self._run.run_id, root_run=self._run.root_run_id)
            run = self._mlflow.create_run(
                self._read.mlflow.experiment_id,
                name=self.plan.run_name,
                tags=tags,
            )
            self._mlflow_run_id = run.id
            self._log.info(f"MLflow run {run.id}: {self._mlflow.run_url(run)}")
        return self._mlflow_run_id

    # ---- train

    def train(self) -> str:
        """Run the training to its end, following its output; return the MLflow run's ID.

        Raises:
            TrainingError: it did not end well; the instance is terminated and the MLflow run closed.
            InstanceLost: the instance went away under us.
        """
        instance = self._instance or self.provision()
        try:
            return self._train_on(instance)
        except BaseException as error:
            self.abandon(error)
            raise

    def _train_on(self, instance: Instance) -> str:
        run_id = self._open_mlflow_run()
        masker = Masker(secrets_in(self._environment, self._read))
        with self._connect(instance) as ssh:
            ssh.connect(deadline_seconds=self._read.machine.ready_minutes * 60)
            remote = RemoteTraining(ssh, run_id)
            remote.start(
                self.plan.command(self._read, mlflow_run=run_id),
                environment=self._environment,
                deadline=self._lease(run_id, expires_at=instance.expires_at).expires_at - GRACE,
            )
            outcome = remote.follow(
                lambda text: self._write(masker.feed(text)),
                on_event=self._log.warning,
                check=lambda: self._ec2.require_alive(instance.id),
            )
            self._write(masker.flush())
            if not outcome.succeeded:
                last_lines = masker.mask("\n".join(remote.last_lines(20))).splitlines()
                raise failure(f"build {self.plan.partition}", outcome, last_lines)
            self._log.info("the training exited with status 0")
        return self._require_finished(run_id)

    def _require_finished(self, run_id: str) -> str:
        """The process exited 0; MLflow must say FINISHED too, or the run is red."""
        run = self._mlflow.run(run_id)
        if run.status == "RUNNING":
            run = self._mlflow.finish(run_id, "FINISHED", reason="the training process exited 0")
        if run.status != "FINISHED":
            raise TrainingFailed(
                f"build {self.plan.partition}: the training exited 0, but MLflow holds run {run_id} as {run.status}; "
                f"look at what the training did to its own run: {self._mlflow.run_url(run)}"
            )
        return run_id

    # ---- terminate and record

    def terminate(self) -> Usage | None:
        """Give the instance back; return what it was used for, or None when there is none any more."""
        instance = self._instance or self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition)
        self._open = False
        if instance is None:
            return None
        state = self._ec2.terminate(instance.id) or "gone"
        usage = self._usage(instance)
        self._log.info(f"{instance.id} is {state} after {usage.minutes:.1f} minutes")
        self._mlflow.set_tags(self._finished_run().id, usage.tags())
        self._instance = None
        return usage

    def _usage(self, instance: Instance) -> Usage:
        minutes = (datetime.now(UTC) - instance.launched_at).total_seconds() / 60
        hourly = self._ec2.hourly_usd(instance)
        return Usage(
            instance_id=instance.id,
            instance_type=instance.type,
            market=instance.market,
            minutes=minutes,
            usd=None if hourly is None else hourly * minutes / 60,
        )

    def _finished_run(self) -> Run:
        """The MLflow run that this attempt, or the one that it re-executes, has filled."""
        if self._mlflow_run_id is None:
            run = self._mlflow.find_run(
                self._read.mlflow.experiment_id,
                tags={**self.plan.identity(), "dagster_root_run_id": self._run.root_run_id},
                statuses={"FINISHED"},
            )
            if run is None:
                raise TrainingLost(
                    f"MLflow holds no FINISHED run of build {self.plan.partition} from this run or the one that it "
                    "re-executes; launch the whole run again, not only its last steps"
                )
            self._mlflow_run_id = run.id
        return self._mlflow.run(self._mlflow_run_id)

    def finished(self) -> FinishedTraining:
        """All that MLflow holds of the finished training."""
        run = self._finished_run()
        if missing := {key: value for key, value in self.plan.parameters.items() if key not in run.params}:
            # `mlflow run --run-id` does not log them; only after the training, which may log its own reading of them.
            self._mlflow.log_params(run.id, missing)
            run = self._mlflow.run(run.id)
        return FinishedTraining(
            run=run,
            url=self._mlflow.run_url(run),
            histories={key: self._mlflow.metric_history(run.id, key) for key in curve_metrics(run)},
            usage=Usage.from_tags(run.tags),
        )

    # ---- when it goes wrong

    def abandon(self, error: BaseException) -> None:
        """Give the instance back and close the MLflow run, whatever was going on; safe to call twice.

        Args:
            error: why; ends up in the MLflow run's tags.
        """
        if not self._open:
            return
        instance = self._instance or self._ec2.find(pipeline=self.plan.pipeline, partition=self.plan.partition)
        if instance is not None and instance.dagster_run in ("", self._run.run_id):
            state = self._ec2.terminate(instance.id) or "gone"
            self._log.info(f"{instance.id} is {state}")
        self._instance = None
        self._open = False
        if self._mlflow_run_id is not None:
            failed = isinstance(error, OrchestratorError)
            reason = str(error).partition("\n")[0] or "the Dagster run was cancelled"
            try:
                self._mlflow.finish(
                    self._mlflow_run_id, "FAILED" if failed else "KILLED", reason=reason, patience_seconds=10
                )
            except MlflowError as unfinished:
                self._log.warning(f"MLflow run {self._mlflow_run_id} could not be closed: {unfinished}")

    def close(self) -> None:
        """Last net, at the end of the Dagster run: nothing that this attempt opened stays."""
        self.abandon(sys.exc_info()[1] or KeyboardInterrupt("the Dagster run ended early"))
