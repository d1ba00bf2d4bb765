"""Has the models of a training loaded in its own environment, right after its command exited 0.

Loaded by `sitecustomize.py` into the process of `mlflow run`, which knows how the environment is entered: whatever
stands before the project's command in the command line that it runs (`. …/activate && `, `docker run … image `,
nothing for `local`). `load_model.py` takes the command's place there. How it went stands as a tag on the MLflow run of
each model. Needs Python 3.8.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

VARIABLE = "ORCHESTRATOR_MODEL_CHECK"
"""JSON: what is asked for; without it nothing is loaded."""

MOST_MODELS = 3
"""Runs whose newest model is loaded: which run is the training's model is decided elsewhere, later."""

_SPARE_SECONDS = 20.0
"""Of a training's time that is left to end in order."""

_LEAST_SECONDS = 10.0
_TAIL_BYTES = 8192
_TAIL_LINES = 12
_TAG_BYTES = 3000
_SECRET = re.compile(r"TOKEN|PASSW|SECRET|KEY|CREDENTIAL", re.IGNORECASE)
_PYTHON = re.compile(r"(?:[\w./=:@%+,~-]+ +)*?[\w./~-]*?\bpython[0-9.]*(?=\s|$)")


class ModelCheck:
    """What is asked for, and how the project's environment is entered.

    Args:
        asked: as `VARIABLE` has it: `seconds` for loading, `left` until the training's deadline from now on, `choice`
            of the model's run, names of `secret` variables, the `tag` of other runs and the one of the `result`.
        projects: the module `mlflow.projects`.
    """

    def __init__(self, asked: Mapping[str, Any], projects: Any) -> None:
        self._asked = asked
        self._projects = projects
        self._begun = time.monotonic()
        self._prefix: str | None = None
        self._command = ""
        self._work_dir = ""

    def learn(self, local: Any) -> None:
        """See the command line that `mlflow run` makes.

        Args:
            local: the module `mlflow.projects.backend.local`.
        """
        get_command, run = local.get_entry_point_command, local._run_entry_point
        known: list[str] = []

        def get_and_learn(*arguments: Any, **options: Any) -> Any:
            commands = get_command(*arguments, **options)
            known[:] = commands
            return commands

        def learn_and_run(command: str, work_dir: str, *arguments: Any, **options: Any) -> Any:
            if len(known) == 1 and command.endswith(known[0]):
                self._prefix, self._command = command[: len(command) - len(known[0])], known[0]
                self._work_dir = work_dir
            return run(command, work_dir, *arguments, **options)

        local.get_entry_point_command, local._run_entry_point = get_and_learn, learn_and_run

    def look(self, run_id: str) -> None:
        """Load the models of a training whose command exited 0, and keep how it went.

        Args:
            run_id: the training's own MLflow run.
        """
        client = self._projects.tracking.MlflowClient()
        candidates = self._with_models(client, run_id)
        if not candidates:
            return
        left = self._asked["left"] - (time.monotonic() - self._begun) - _SPARE_SECONDS
        seconds = min(float(self._asked["seconds"]), left)
        if self._prefix is None:
            self._keep_all(client, candidates, "unknown", "this MLflow does not show how it runs a project's command")
        elif seconds < _LEAST_SECONDS:
            reason = f"no time was left to load it ({max(left, 0):.0f} s): raise MAX_TRAINING_MINUTES"
            self._keep_all(client, candidates, "failed", reason)
        else:
            self._load(client, run_id, seconds, candidates)

    def _with_models(self, client: Any, run_id: str) -> list[str]:
        """The runs that have one; where this MLflow is too old to see those of a newer one, all that may have."""
        root = client.get_run(run_id)
        marked = f"tags.`{self._asked['tag']}` = '{run_id}'"
        others = client.search_runs([root.info.experiment_id], marked, max_results=1000)
        runs = [root, *(run for run in others if run.info.run_id != run_id)]
        if not hasattr(root, "outputs"):
            return [run.info.run_id for run in runs]
        return [run.info.run_id for run in runs if _has_model(run)]

    def _load(self, client: Any, run_id: str, seconds: float, candidates: list[str]) -> None:
        _say(f"loading the model that was logged, in the training's environment, for {seconds:.0f} s at most")
        job = {key: self._asked[key] for key in ("tag", "choice")}
        job = {**job, "run": run_id, "most": MOST_MODELS, "token": f"orchestrator-{os.urandom(12).hex()} "}
        give_up = time.monotonic() + seconds
        reason = ""
        for program in self._programs():
            job["seconds"] = max(give_up - time.monotonic(), 1.0)
            reports, tail = self._run(program, job)
            state = reports[0].get("state") if reports else ""
            if state == "begun":
                self._tell(client, reports, tail, late=time.monotonic() >= give_up)
                return
            if state == "unsuitable":
                reason = reason or str(reports[0]["reason"])
            if time.monotonic() >= give_up:
                break
        reason = f"no Python of the training's environment has MLflow with pyfunc: {reason or 'none was found'}"
        self._keep_all(client, candidates, "unknown", reason)

    def _programs(self) -> Iterator[str]:
        """What to begin the command line with: the training's own Python as its command names it, then the usual."""
        tried = []
        for part in re.split(r"[;&|\n]+", self._command):
            found = _PYTHON.match(part.strip())
            if found:
                tried.append(found[0])
        yield from dict.fromkeys([*tried, "python", "python3"])

    def _run(self, program: str, job: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
        """What the loader reports, and the last lines of all else that it prints."""
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "load_model.py"), encoding="utf-8") as file:
            script = file.read()
        command = f"{self._prefix}{program} -c {shlex.quote(script)} {shlex.quote(json.dumps(job))}"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self._projects.tracking.get_tracking_uri()}
        environment["BASH_ENV"] = environment.pop("ORCHESTRATOR_BASH_ENV", "")
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                ["bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._work_dir,
                env=environment,
                preexec_fn=os.setpgrp,
            )
            try:
                process.wait(timeout=job["seconds"] + _SPARE_SECONDS / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return self._read(output, job["token"])

    def _read(self, output: Any, token: str) -> tuple[list[dict[str, Any]], str]:
        output.seek(0)
        reports, others = [], bytearray()
        for line in output:
            if line.startswith(token.encode()):
                reports.append(json.loads(line[len(token) :]))
            else:
                others = (others + line)[-_TAIL_BYTES:]
        lines = [line.rstrip() for line in others.decode("utf-8", errors="replace").splitlines() if line.strip()]
        return reports, self._masked("\n".join(lines[-_TAIL_LINES:]))

    def _tell(self, client: Any, reports: list[dict[str, Any]], tail: str, *, late: bool) -> None:
        waiting: dict[str, Any] = {}
        for report in reports[1:]:
            if report["state"] == "loading":
                waiting = report
                continue
            waiting = {}
            self._keep(client, report)
            words = " and answered its input example" if report.get("predicted") else ""
            if report["state"] == "loaded":
                _say(f"model {report['model']} was loaded in {report['seconds']:g} s{words}")
        if waiting:
            reason = "it was not loaded in time" if late else "it could not be loaded"
            self._keep(client, {**waiting, "state": "failed", "reason": f"{reason}:\n{tail}"})
            _say(f"model {waiting['model']} of MLflow run {waiting['run']}: {reason}:\n{tail}")

    def _keep_all(self, client: Any, runs: list[str], state: str, reason: str) -> None:
        _say(f"the model that was logged was not loaded: {self._masked(reason)}")
        for run in runs[:MOST_MODELS]:
            self._keep(client, {"run": run, "state": state, "reason": reason})

    def _keep(self, client: Any, report: Mapping[str, Any]) -> None:
        result = {key: value for key, value in report.items() if key != "run"}
        if "reason" in result:  # its end: the error itself stands in the last line
            result["reason"] = self._masked(str(result["reason"]))[-_TAG_BYTES // 2 :]
        client.set_tag(report["run"], self._asked["result"], json.dumps(result)[:_TAG_BYTES])

    def _masked(self, text: str) -> str:
        """Without logins in addresses, and without the values of variables that look or were declared secret."""
        declared = set(self._asked["secret"])
        for name, value in os.environ.items():
            if len(value) >= 6 and (name in declared or _SECRET.search(name)):
                text = text.replace(value, "***")
        return re.sub(r"(://)[^/\s@]*@", r"\1***@", text)


def of(projects: Any) -> ModelCheck | None:
    """What is asked for, which the project's own processes need not see; None: nothing.

    Args:
        projects: the module `mlflow.projects`.
    """
    asked = os.environ.pop(VARIABLE, "")
    return ModelCheck(json.loads(asked), projects) if asked else None


def _has_model(run: Any) -> bool:
    outputs = getattr(run, "outputs", None)
    return "mlflow.log-model.history" in run.data.tags or bool(getattr(outputs, "model_outputs", None))


def _say(text: str) -> None:
    sys.stderr.write(f"orchestrator: {text}\n")
    sys.stderr.flush()
