"""The MLflow run of an attempt: created before the machine, adopted from a dead attempt, closed whatever happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from orchestrator import names
from orchestrator.errors import (
    MlflowError,
    MlflowNotFound,
    MlflowUnavailable,
    TrainingFailed,
    TrainingLost,
)
from orchestrator.pipeline.training.curves import Curves, curve_metrics
from orchestrator.pipeline.training.finished import FinishedTraining, Registered, Usage
from orchestrator.pipeline.training.logged_parameters import log_parameters
from orchestrator.pipeline.training.model_run import choose
from orchestrator.pipeline.training.other_runs import close_all, end_others, find_others, marks
from orchestrator.pipeline.training.plan import Plan
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Instance
from orchestrator.resources.mlflow import FinalStatus, MetricPoint, Mlflow, Run
from orchestrator.resources.mlflow.errors import CUT_OFF
from orchestrator.settings.groups import MlflowSettings, ModelChoice

_log = logging.getLogger(__name__)

MAX_ASKED = 10
"""Runs of a training that the model registry is asked about."""

HISTORIES_SECONDS = 300.0
"""For the curves of a training; what does not come in this time is not drawn."""


class TrackedRun:
    """The MLflow run that one attempt fills.

    Args:
        mlflow: the server.
        settings: its settings.
        plan: what is trained.
        deployment: which installation this is.
        dagster_run: ID of the Dagster run.
        root_run: ID of the Dagster run that it retries, or its own.
        trained: the MLflow run whose process an attempt before this one saw exit with 0, if one did.
        from_sensor: the Dagster run is the first for this build, as far as Dagster knows: the sensor launched it.
        choice: which of the runs that the training makes is the model; None: see `choose`.
    """

    def __init__(
        self,
        mlflow: Mlflow,
        settings: MlflowSettings,
        plan: Plan,
        *,
        deployment: str,
        dagster_run: str,
        root_run: str,
        trained: str | None,
        from_sensor: bool = False,
        choice: ModelChoice | None = None,
    ) -> None:
        self._mlflow = mlflow
        self._settings = settings
        self._plan = plan
        self._deployment = deployment
        self._dagster_run = dagster_run
        self._root_run = root_run
        self._trained = trained
        self._from_sensor = from_sensor
        self._choice = choice
        self._id: str | None = None
        usual = mlflow.policy.total_seconds
        self._patient = mlflow.with_policy(mlflow.policy.with_total(max(usual, settings.patience_minutes * 60)))
        self._closing = mlflow.with_policy(
            retry.MLFLOW_CLOSING.with_total(min(usual, retry.MLFLOW_CLOSING.total_seconds))
        )
        # A retry may find a training under way: it is not given up as long as MLflow may come back.
        self._training_at_stake = root_run != dagster_run

    @property
    def patient_mlflow(self) -> Mlflow:
        """The server, waited for as MLFLOW_PATIENCE_MINUTES says: for what follows a training."""
        return self._patient

    @property
    def _server(self) -> Mlflow:
        return self._patient if self._training_at_stake else self._mlflow

    def require_experiment(self) -> str:
        """The experiment's name.

        Raises:
            MlflowNotFound: there is no such experiment.
        """
        return self._server.experiment(self._settings.experiment_id).name

    def already_trained(self) -> bool:
        """Whether an attempt before this one saw the training's process exit with 0.

        MLflow's FINISHED does not say so: a script sets it when its `with mlflow.start_run()` ends, and may fail later.

        Raises:
            MlflowError: MLflow cannot be asked.
        """
        if self._trained is None:
            self._trained = self._proven()
        if self._trained is None or not self._kept(self._trained):
            return False
        self._id = self._trained
        _log.info(f"Nothing is left to train: the process of MLflow run {self._id} exited 0 in an earlier attempt")
        return True

    def _proven(self) -> str | None:
        """What MLflow holds as trained and Dagster does not know of, because its database was restored.

        A sensor launches a build once, as its run key says; whoever launches it again by hand wants another training.
        """
        tags = {**self._plan.identity(), names.MlflowTag.DEPLOYMENT: self._deployment}
        if self._root_run != self._dagster_run:
            tags[names.MlflowTag.DAGSTER_ROOT_RUN] = self._root_run
        elif not self._from_sensor:
            return None
        finished = self._server.find_runs(self._settings.experiment_id, tags=tags, statuses={"FINISHED"})
        return next((run.id for run in finished if _was_ended_well(run)), None)

    def _kept(self, run_id: str) -> bool:
        """Whether a run was not deleted, as far as MLflow can be asked now."""
        try:
            self._server.run(run_id)
        except MlflowNotFound:
            self._trained = None
            _log.info(f"Training again: MLflow run {run_id} of an earlier attempt was deleted")
            return False
        except MlflowUnavailable as error:
            _log.warning(f"Trusting MLflow to still have run {run_id}: {error}")
        return True

    def adopt(self, run_id: str) -> bool:
        """Take over the run that a dead attempt was filling, if it was made for exactly this training."""
        try:
            run = self._server.run(run_id)
        except MlflowNotFound:
            return False
        retried = run.tags.get(names.MlflowTag.DAGSTER_ROOT_RUN) == self._root_run
        if not run.has(self._plan.identity()) or not (run.status == "RUNNING" or retried):
            return False
        self._id = run.id
        # What somebody ended it as counts no more: its training goes on.
        self._server.set_tags(run.id, {names.MlflowTag.DAGSTER_RUN: self._dagster_run, names.MlflowTag.ENDED_AS: ""})
        return True

    def open(self) -> str:
        """The run's ID; the run is created at the first call."""
        if self._id is None:
            self._disown_unproven()
            run = self._server.create_run(self._settings.experiment_id, name=self._plan.run_name, tags=self._tags())
            self._id = run.id
            self._training_at_stake = False
            url = self._mlflow.run_url(run)
            _log.info(f"Created MLflow run {run.id}{f': {url}' if url else ''}")
        return self._id

    def _tags(self) -> dict[str, str]:
        return self._plan.tags(deployment=self._deployment, dagster_run=self._dagster_run, root_run=self._root_run)

    def marks(self, instance: Instance) -> dict[str, str]:
        """The tags of the other runs that the training makes on this instance."""
        return marks({**self._tags(), **_tags_of(instance)}, root=self.open())

    def _disown_unproven(self) -> None:
        """Close as KILLED what calls itself FINISHED, though nobody saw its process exit 0, and nobody can any more."""
        if self._root_run == self._dagster_run:
            return
        while run := self._server.find_run(
            self._settings.experiment_id,
            tags={**self._plan.identity(), names.MlflowTag.DAGSTER_ROOT_RUN: self._root_run},
            statuses={"FINISHED"},
        ):
            reason = "nobody saw its process exit with 0 before its instance was gone; the build is trained again"
            self._server.finish(run.id, "KILLED", reason=reason)
            _log.warning(f"Closed MLflow run {run.id} of an earlier attempt as KILLED: {reason}")

    def launched(self, instance: Instance) -> None:
        """Say on which instance it is filled."""
        run_id = self.open()
        self._server.set_tags(run_id, _tags_of(instance))

    @property
    def id(self) -> str | None:
        """The run's ID, if there is one yet."""
        return self._id

    def reserve(self, usd: float) -> None:
        """Let other launches see what this one may cost."""
        self._server.set_tags(self.open(), {names.MlflowTag.RESERVED_USD: f"{usd:.6f}"})

    def used(self, usage: Usage) -> None:
        """Keep what the instance cost; an MLflow that is away gets it when the training is recorded."""
        if self._id is None:
            return
        self._training_at_stake = False
        try:
            self._mlflow.set_tags(self._id, usage.tags())
        except MlflowError as error:
            _log.warning(f"Not recorded yet what instance {usage.instance_id} cost: {error}")

    def drop(self, reason: str, usage: Usage | None = None) -> None:
        """Close the run as KILLED and forget it: what comes next is another training."""
        self.close("KILLED", reason=reason, usage=usage)
        self._id = None

    def close(self, status: FinalStatus, *, reason: str, usage: Usage | None = None) -> None:
        """Close the run and those that the training left open, without waiting long for MLflow.

        Nothing is closed that is not, or no longer, this attempt's.

        Args:
            status: FAILED for a training that failed and KILLED for one that was stopped, whatever it said of
                itself; FINISHED for one whose process exited 0, unless it had ended by then.
            reason: one sentence, kept as a tag.
            usage: of the instance, if it had one, kept as tags.
        """
        if self._id is None:
            return
        try:
            run = self._closing.run(self._id)
            owner = run.tags.get(names.MlflowTag.DAGSTER_RUN)
            if owner != self._dagster_run:
                _log.info(f"Leaving MLflow run {run.id} to Dagster run {owner}, which has it")
                return
            if usage is not None:
                self._closing.set_tags(run.id, {**usage.tags(), names.MlflowTag.ENDED_AS: status})
            until = time.monotonic() + self._closing.policy.total_seconds
            end_others(self._closing, run, status, reason=reason, until=until)
            if status != "FINISHED" or not run.ended:
                self._closing.finish(run.id, status, reason=reason)
        except MlflowError as error:
            _log.warning(f"Not closed MLflow run {self._id}; if it is RUNNING, the janitor closes it: {error}")

    def finished(self, usage: Usage | None) -> FinishedTraining:
        """All that MLflow holds of the training, whose process exited 0; waits for an MLflow that is away.

        Args:
            usage: of the instance, to be kept as tags; None: as an earlier attempt wrote it.

        Raises:
            TrainingFailed: MLflow does not hold the run as FINISHED.
            TrainingLost: MLflow holds no such run.
            MlflowError: MLflow did not come back within MLFLOW_PATIENCE_MINUTES, or does not answer as it should; of
                the kind that it was, and says that the build is trained.
        """
        mlflow = self._patient
        try:
            root = self._completed(self._mine(), usage)
            kept = Usage.from_tags(root.tags)
            others = self._others(root)
            chosen = choose(root, others, self._choice)
            run = chosen.run
            return FinishedTraining(
                run=run,
                url=mlflow.run_url(run),
                histories=self._histories(run),
                usage=usage if kept is None else kept,
                root=root,
                others=others,
                reason=chosen.reason,
                registered=self._registered([run, root, *others]),
            )
        except MlflowError as error:
            cure = "MLflow is back" if isinstance(error, MlflowUnavailable) else "that is put right"
            raise type(error)(
                f"build {self._plan.partition} is trained, but could not be recorded from MLflow run "
                f"{self._id or 'of this build'}: {error}. When {cure}, re-execute this run from failure: "
                "it records without training again"
            ) from error

    def _histories(self, run: Run) -> Curves:
        until = time.monotonic() + HISTORIES_SECONDS
        histories: dict[str, Sequence[MetricPoint]] = {}
        try:
            for key in curve_metrics(run):
                histories[key] = self._patient.metric_history(run.id, key, until=until)
        except CUT_OFF:
            raise
        except MlflowError as error:
            _log.warning(f"Left out learning curves of MLflow run {run.id}: {error}")
        return histories

    def _others(self, root: Run) -> Sequence[Run]:
        """The other runs that the training made; with our tags, and ended: its process is over."""
        mlflow = self._patient
        try:
            others = find_others(mlflow, root)
            tags = marks(root.tags, root=root.id)
            unmarked = [run for run in others if names.MlflowTag.TRAINING not in run.tags]
            for run in unmarked:
                mlflow.set_tags(run.id, tags)
            left = [run for run in others if run.status == "RUNNING"]
            close_all(mlflow, left, "FINISHED", reason="the training process exited 0 and left this run open")
            return find_others(mlflow, root) if left else others
        except CUT_OFF:
            raise
        except MlflowError as error:  # such as one that somebody deleted just now: the model is still there
            _log.warning(f"Recording nothing of the other runs that the training of MLflow run {root.id} made: {error}")
            return ()

    def _registered(self, runs: Sequence[Run]) -> Sequence[Registered]:
        """What the training put into the model registry, if the server has one and it answers soon."""
        with_model = list({run.id: run for position, run in enumerate(runs) if position < 2 or run.has_model}.values())
        try:
            return [
                Registered(run=run, version=version)
                for run in with_model[:MAX_ASKED]
                for version in self._closing.model_versions(run.id)
            ]
        except MlflowError as error:
            _log.warning(f"Recording no registered models: {error}")
            return ()

    def _mine(self) -> Run:
        self._id = self._id or self._trained
        if self._id is None:
            run = self._patient.find_run(
                self._settings.experiment_id, tags=self._plan.identity(), statuses={"FINISHED"}
            )
            if run is None:
                raise TrainingLost(
                    f"MLflow holds no finished run of build {self._plan.partition} as this run would train it; "
                    "launch the whole run again, not only its last steps"
                )
            self._id = run.id
        return self._patient.run(self._id)

    def _completed(self, run: Run, usage: Usage | None) -> Run:
        if run.status == "RUNNING":
            run = self._patient.finish(run.id, "FINISHED", reason="the training process exited 0")
        if run.status != "FINISHED":
            raise TrainingFailed(
                f"build {self._plan.partition}: the training exited 0, but MLflow holds run {run.id} as {run.status}; "
                f"look at what the training did to its own run: {self._mlflow.run_url(run) or run.id}"
            )
        # `mlflow run --run-id` does not log them; only now, because the training may log its own reading of them.
        missing = {key: value for key, value in self._plan.parameters.items() if key not in run.params}
        if missing:
            log_parameters(self._patient, run.id, missing)
        unwritten = usage is not None and Usage.from_tags(run.tags) is None
        if usage is not None and unwritten:
            try:
                self._patient.set_tags(run.id, usage.tags())
            except CUT_OFF:
                raise
            except MlflowError as error:
                _log.warning(f"Not recorded in MLflow what instance {usage.instance_id} cost: {error}")
        return self._patient.run(run.id) if missing or unwritten else run


def _was_ended_well(run: Run) -> bool:
    """Whether its instance was given back after its training, which is when the cost is written."""
    return names.MlflowTag.MINUTES in run.tags and run.tags.get(names.MlflowTag.ENDED_AS) not in ("FAILED", "KILLED")


def _tags_of(instance: Instance) -> dict[str, str]:
    return {
        names.MlflowTag.INSTANCE_ID: instance.id,
        names.MlflowTag.INSTANCE_TYPE: instance.type,
        names.MlflowTag.MARKET: instance.market,
    }
