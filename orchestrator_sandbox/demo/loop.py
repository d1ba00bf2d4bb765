"""The demo: commits to the sample project, shows how a model comes of it, and stays up to be played with."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from orchestrator.errors import SandboxError
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.targets import DirectoryTarget
from orchestrator.resources.targets.directory import CURRENT
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.demo.display import DemoState, View, view_on
from orchestrator_sandbox.demo.outcome import DemoOutcome, OutcomeReader
from orchestrator_sandbox.demo.project import Commit, another_training, history
from orchestrator_sandbox.stack import PIPELINE, SENSOR, TRAINED_MODEL, Stack

ONCE_SECONDS = 600.0
POLL_SECONDS = 0.5
LINES_KEPT = 100


def demo(*, directory: Path, port: int, once: bool, as_json: bool, projects: int = 1) -> int:
    """Run the demo, and show it.

    Args:
        directory: where everything is kept, also for the next demo.
        port: of Dagster's UI.
        once: end after the first model.
        as_json: make the last line of standard output one JSON object; all else goes to standard error.
        projects: how many ML projects, each with a repository, a Jenkins job and a pipeline of its own.

    Returns:
        The exit status: 0 when the model was really trained.

    Raises:
        SandboxError: a part did not start, or there was no model in time.
        SettingsError: the port is taken.
    """
    started = time.monotonic()
    console = Console(stderr=as_json, highlight=False)
    console.print(f"Starting Git, Jenkins, a package index, EC2 and MLflow in {directory.absolute()}", soft_wrap=True)
    if os.geteuid() == 0:
        console.print("Warning: as root: what is pushed, built and trained here runs as root, too", soft_wrap=True)
    with Stack(directory, port=port, projects=projects, deploy=True, publish=True) as stack:
        loop = DemoLoop(stack, started=started)
        return present(loop, console, commits=loop.commits(past=not once), once=once, as_json=as_json)


def present(loop: DemoLoop, console: Console, *, commits: Sequence[Commit], once: bool, as_json: bool) -> int:
    """Show a demo up to its first model, or until a signal ends it; return the exit status."""
    try:
        with view_on(console) as view:
            loop.first_model(view, commits=commits)
            loop.other_models(view)
            loop.models_in_use(view)
            if once:
                loop.conclude(view)
            else:
                loop.go_on(view)
    finally:
        console.print("Stopping everything")
        if as_json:
            print(json.dumps(loop.to_json()), flush=True)  # noqa: T201 - what --json is for
    faults = [fault for outcome in (loop.outcome, *loop.others) for fault in outcome.faults()]
    if faults:
        sys.stderr.write(f"orchestrator: no model was trained: {'; '.join(faults)}\n")
    return 1 if faults else 0


class DemoLoop:
    """One demo, from its first commit on.

    Args:
        stack: the sandbox.
        started: when it started, by the monotonic clock.

    Attributes:
        outcome: what became of the last build that was trained.
        others: the same of the first training of each further project.
    """

    def __init__(self, stack: Stack, *, started: float) -> None:
        self.outcome = DemoOutcome(pipeline=PIPELINE)
        self.others = [DemoOutcome(pipeline=project.pipeline) for project in stack.projects[1:]]
        self._stack = stack
        self._started = self._lap_began = started
        self._seconds: dict[str, float] = {}
        self._earlier_runs: set[str] = set()
        self._concluded: set[str] = set()
        self._output: OutputTail | None = None

    def commits(self, *, past: bool) -> Sequence[Commit]:
        """What to commit: the project's past, if wanted and the folder is new; else one change."""
        if self._stack.is_new:
            return history() if past else ()
        return (another_training(),)

    def first_model(self, view: View, *, commits: Sequence[Commit]) -> None:
        """Commit, start Dagster, and follow the newest commit to its model.

        Raises:
            SandboxError: it was not built, or not trained in time.
        """
        jenkins = OutcomeReader(self._stack.jenkins.env(), dagster_url="")
        if not self._stack.is_new:
            for project in self._stack.projects[1:]:
                another = another_training()
                project.git.commit(another.message, another.edit)
        for commit in commits:
            # A build takes the newest commit there is when it starts, so the next commit waits for that.
            self._await_builds(jenkins, view, finished=False)
            self._stack.git.commit(commit.message, commit.edit)
        head = self._stack.git.head()
        # Whatever is built before the sensor's first tick is the past, which is left to backfills; and a build
        # that ends just after a tick waits for the next one.
        self._await_builds(jenkins, view, finished=True)
        view.show(DemoState("waiting for EC2 and MLflow", builds=jenkins.builds()))
        environment = self._stack.env()
        self._lap("sandbox")
        view.show(DemoState("starting Dagster", builds=jenkins.builds()))
        self._dagster = self._stack.start_dagster()
        self._reader = OutcomeReader(environment, dagster_url=self._dagster.url)
        self._lap("dagster")
        self._earlier_runs = {run.id for run in self._dagster.runs() if run.over}
        deadline = self._started + ONCE_SECONDS
        while not self._trained(head, view):
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"there is no model after {ONCE_SECONDS / 60:g} minutes; the logs are in {self._stack.directory}"
                )
            time.sleep(POLL_SECONDS)

    def other_models(self, view: View) -> None:
        """Follow a build of each further project to its model.

        Raises:
            SandboxError: there was none in time.
        """
        for index, project in enumerate(self._stack.projects[1:]):
            environment = {**self._stack.env(), "JENKINS_JOB_NAME": project.job}
            reader = OutcomeReader(environment, dagster_url=self._dagster.url)
            deadline = time.monotonic() + ONCE_SECONDS
            while (run := self._ended_run(project.pipeline)) is None:
                if time.monotonic() > deadline:
                    raise SandboxError(f"{project.pipeline} has no model; the logs are in {self._stack.directory}")
                view.show(self._state(None, activity=f"waiting for a model of {project.pipeline}"))
                time.sleep(POLL_SECONDS)
            build = next(build for build in reader.builds() if str(build.number) == run.partition)
            failure = None if run.status == "SUCCESS" else self._dagster.failure(run.id)
            self.others[index] = reader.outcome(
                project.pipeline, build=build, run=run, failure=failure, seconds=self._seconds
            )

    def to_json(self) -> dict[str, Any]:
        """What `orchestrator demo --json` prints: the first project, and under `projects` all, if there are more."""
        first = self.outcome.to_json()
        return {**first, "projects": [first, *(other.to_json() for other in self.others)]} if self.others else first

    def _ended_run(self, pipeline: str) -> RunSummary | None:
        trainings = (run for run in self._dagster.runs() if run.pipeline == pipeline and run.partition)
        return next((run for run in trainings if run.over and run.id not in self._earlier_runs), None)

    def models_in_use(self, view: View) -> None:
        """Wait until the best model of each project is in use, this one or an earlier one; if the stack deploys any.

        Raises:
            SandboxError: it was not in time.
        """
        if not self._stack.deploys:
            return
        outcomes = [self.outcome, *self.others]
        for index, (project, outcome) in enumerate(zip(self._stack.projects, outcomes, strict=True)):
            if outcome.mlflow_run_id is None or outcome.faults():
                continue
            target = DirectoryTarget(self._stack.in_use(project))
            deadline = time.monotonic() + ONCE_SECONDS
            while True:
                champion = self._reader.champion(project.job, over=outcome.mlflow_run_id)
                release = target.state()
                if champion and release and release.version == champion:
                    break
                if time.monotonic() > deadline:
                    raise SandboxError(
                        f"{project.pipeline} has no model in use; the logs are in {self._stack.directory}"
                    )
                view.show(
                    self._state(None, activity=f"{project.pipeline}: choosing the best model and putting it into use")
                )
                time.sleep(POLL_SECONDS)
            outcomes[index] = dataclasses.replace(
                outcome,
                champion={"model": release.model, "version": release.version, "build": release.build},
                deployment={"target": target.place, "version": release.version, "commit": release.commit},
            )
        self.outcome, *self.others = outcomes
        self._lap("deployment")

    def conclude(self, view: View) -> None:
        """Show what has become of the first models, and what can be done with them when everything else has stopped."""
        if self.outcome.deployment:
            view.show(self._state(None, activity="the best model is in use", hints=self._models_hints()))

    def go_on(self, view: View) -> NoReturn:
        """Show what the user makes happen, until a signal."""
        hints = self._hints()
        while True:
            view.show(self._state(None, hints=hints))
            time.sleep(POLL_SECONDS)

    def _trained(self, head: str, view: View) -> bool:
        state = self._state(head)
        view.show(state)
        if state.run and "wait" not in self._seconds:
            self._lap("wait")
        build = next((build for build in state.builds if build.commit == head), None)
        if build and build.finished and not build.succeeded():
            raise SandboxError(f"Jenkins' build {build.number} of {head} ended {build.result}: see {build.url}console")
        return self.outcome.commit == head

    def _state(self, head: str | None, *, hints: Sequence[str] = (), activity: str | None = None) -> DemoState:
        builds = self._reader.builds()
        runs = [run for run in self._dagster.runs() if run.pipeline == PIPELINE and run.partition]
        run = self._followed(runs, builds, head)
        output = self._output_of(run) if run else ()
        if run is not None and run.over and run.id not in self._concluded:
            self._concluded.add(run.id)
            self._conclude(run, builds)
        return DemoState(
            activity or self._activity(run, builds, head),
            builds=builds,
            trainings={run.partition: run.status for run in reversed(runs) if run.partition},
            run=run,
            output=output,
            outcome=self.outcome if self.outcome.dagster_run_id else None,
            hints=(f"Watch it in Dagster's UI: {self._stack.dagster_page()}", *hints),
        )

    def _followed(self, runs: Sequence[RunSummary], builds: Sequence[Build], head: str | None) -> RunSummary | None:
        """The run of the newest commit, else one that is under way, else the newest of this demo."""
        of_head = {str(build.number) for build in builds if build.commit == head}
        ours = [run for run in runs if run.id not in self._earlier_runs]
        order = sorted(ours, key=lambda run: (run.partition not in of_head, run.over))  # stable: newest first
        return next(iter(order), None)

    def _output_of(self, run: RunSummary) -> Sequence[str]:
        if self._output is None or self._output.run_id != run.id:
            self._output = OutputTail(self._dagster, run.id)
        return self._output.read()

    def _activity(self, run: RunSummary | None, builds: Sequence[Build], head: str | None) -> str:
        if run is not None and (head is not None or not run.over):
            step = next((step.name for step in run.steps if step.status == "IN_PROGRESS"), None)
            return f"run {run.id[:8]} of build {run.partition}: {step or run.status}"
        if head is None:
            return "Dagster waits for the next build"
        if any(build.commit == head and build.finished for build in builds):
            if error := self._dagster.failed_tick(SENSOR):
                return f"Dagster could not ask Jenkins for builds, and tries again: {error}"
            return "the build is green; Dagster asks Jenkins for new builds every few seconds"
        return "Jenkins runs the project's tests"

    def _conclude(self, run: RunSummary, builds: Sequence[Build]) -> None:
        build = next((build for build in builds if str(build.number) == run.partition), None)
        if build is None:
            return  # an old build, out of the list: its run's page says it all
        self._seconds["total"] = _rounded(time.monotonic() - self._started)
        self.outcome = self._reader.outcome(
            PIPELINE,
            build=build,
            run=run,
            failure=None if run.status == "SUCCESS" else self._dagster.failure(run.id),
            seconds=self._seconds,
        )

    def _await_builds(self, jenkins: OutcomeReader, view: View, *, finished: bool) -> None:
        """Wait until the newest commit is checked out, or until all builds have ended."""
        head = self._stack.git.head()
        while True:
            builds = jenkins.builds()
            view.show(DemoState("committing, and Jenkins builds each commit", builds=builds))
            known = any(build.commit == head for build in builds)
            if known and (not finished or all(build.finished for build in builds)):
                return
            time.sleep(POLL_SECONDS)

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = _rounded(now - self._lap_began)
        self._lap_began = now

    def _hints(self) -> tuple[str, ...]:
        asset = "/".join(TRAINED_MODEL)
        git = shlex.quote(self._stack.git.push_url)
        folder = self._stack.git.repository.stem
        return (
            "Push another commit, and see it trained:\n"
            f"  git clone {git} && cd {folder}\n"
            "  sed -i 's/^learning_rate:.*/learning_rate: 0.05/' train.yaml\n"
            "  git -c user.name=me -c user.email=me@example.com commit --allow-empty -am 'Learn faster' && git push",
            *(
                f"{project.pipeline}, the pipeline of another repository ({project.git.push_url}): "
                + self._stack.dagster_page(f"/assets/{project.pipeline}/{TRAINED_MODEL[-1]}")
                for project in self._stack.projects[1:]
            ),
            *self._models_hints(),
            f"Train past builds (Materialize, missing partitions): {self._stack.dagster_page(f'/assets/{asset}')}",
            f"Jenkins: {self._stack.jenkins.url}    MLflow: {self._stack.mlflow.url}    Ctrl-C stops everything",
        )

    def _models_hints(self) -> tuple[str, ...]:
        """What holds of the models in use, also when everything has stopped."""
        others = (
            f"{other.pipeline}: build {other.partition} of commit {other.commit}, accuracy "
            f"{other.metrics.get('accuracy', math.nan):.4f}; version {other.deployment['version']} is in use in "
            f"{other.deployment['target']}"
            for other in self.others
            if other.deployment
        )
        return (*others, *((self._serving_hint(),) if self.outcome.deployment else ()))

    def _serving_hint(self) -> str:
        model = self._stack.in_use(self._stack.projects[0]) / CURRENT
        programs = shlex.quote(str(Path(sys.executable).parent))  # MLflow looks for uvicorn on the PATH
        example = shlex.quote(f"@{model / 'serving_input_example.json'}")
        return (
            "Serve the model that is in use, and in another terminal ask it for a prediction:\n"
            f"  PATH={programs}:$PATH mlflow models serve --env-manager local --port 5001 "
            f"--model-uri {shlex.quote(str(model))}\n"
            f"  curl -H 'Content-Type: application/json' -d {example} http://127.0.0.1:5001/invocations"
        )


class OutputTail:
    """The last lines that the training of one run has printed.

    Args:
        dagster: has captured them.
        run_id: the run.

    Attributes:
        lines: the lines, the oldest first.
    """

    def __init__(self, dagster: DagsterApi, run_id: str) -> None:
        self.run_id = run_id
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._dagster = dagster
        self._key: Sequence[str] | None = None
        self._cursor: str | None = None
        self._unfinished_line = ""

    def read(self) -> Sequence[str]:
        """The lines up to now."""
        self._key = self._key or self._dagster.output_key(self.run_id)
        if self._key is not None:
            chunk = self._dagster.output(self._key, cursor=self._cursor)
            self._cursor = chunk.cursor
            *lines, self._unfinished_line = (self._unfinished_line + chunk.text).split("\n")
            self.lines.extend(lines)
        return tuple(self.lines)


def _rounded(seconds: float) -> float:
    return round(seconds, 2)
