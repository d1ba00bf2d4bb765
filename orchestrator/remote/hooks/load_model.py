"""Loads the models that a training has logged, in the training's own environment, and asks each for a prediction.

`model_check.py` hands this file as text to the Python of the project's environment, after the training, because only
there is everything that a model was made with. It is loaded from an empty folder: what it needs has to be a part of
the environment or of the model, not to lie beside the training's script. Needs Python 3.8, and the project's MLflow,
of any version.
"""

import faulthandler
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

HISTORY = "mlflow.log-model.history"
PARENT = "mlflow.parentRunId"


def main(job: dict[str, Any]) -> None:
    """Say of each model how it went, a line each, which begins with the job's token."""

    def report(**facts: Any) -> None:
        sys.stdout.write("\n" + job["token"] + json.dumps(facts) + "\n")
        sys.stdout.flush()

    # A thread of its own in C: it ends what hangs in a library, too, and needs nobody to send a signal.
    faulthandler.dump_traceback_later(job["seconds"], exit=True)
    sys.path[:] = [place for place in sys.path if place]
    # The models are no part of what the training is to leave behind.
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    try:
        # The training's own, which is no dependency of ours.
        mlflow, _ = (importlib.import_module(name) for name in ("mlflow", "mlflow.pyfunc"))
    except ImportError as error:
        report(state="unsuitable", reason=f"{type(error).__name__}: {error}")
        return
    report(state="begun")
    client = mlflow.tracking.MlflowClient()
    folder = tempfile.mkdtemp(prefix="orchestrator-model-")
    os.chdir(folder)
    try:
        for run, name, uri in _chosen(client, job):
            report(state="loading", run=run, model=name)
            started = time.monotonic()
            report(
                run=run,
                model=name,
                **_load(mlflow, uri, folder),
                seconds=round(time.monotonic() - started, 1),
                python=".".join(map(str, sys.version_info[:3])),
            )
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


def _load(mlflow: Any, uri: str, folder: str) -> dict[str, Any]:
    place = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=tempfile.mkdtemp(dir=folder))
    described = mlflow.models.Model.load(place)
    if "python_function" not in described.flavors:
        return {"state": "unknown", "reason": f"it has no flavor python_function ({', '.join(described.flavors)})"}
    model = mlflow.pyfunc.load_model(place)
    example = described.load_input_example(place) if described.saved_input_example_info else None
    if example is None:
        return {"state": "loaded", "predicted": False}
    tracing: Any = getattr(mlflow, "tracing", None)
    if hasattr(tracing, "disable"):
        tracing.disable()
    model.predict(example)
    return {"state": "loaded", "predicted": True}


def _chosen(client: Any, job: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The newest model of each run that may be the training's, the likeliest first: run, name, address."""
    count = 0
    for run in _ordered(client, job):
        if count >= job["most"]:
            return
        found = _newest_model(run)
        if found:
            count += 1
            yield (run.info.run_id, *found)


def _ordered(client: Any, job: dict[str, Any]) -> list[Any]:
    """As `pipeline/training/model_run.py` chooses; what it chooses in the end is known only there."""
    root = client.get_run(job["run"])
    marked = f"tags.`{job['tag']}` = '{job['run']}'"
    others = list(client.search_runs([root.info.experiment_id], marked, max_results=1000))
    others = [run for run in others if run.info.run_id != job["run"] and run.info.status != "FAILED"]
    others.sort(key=lambda run: (_level(run, others), -(run.info.start_time or 0)))
    runs = [root, *others]
    kind, _, metric = job["choice"].partition(":")
    if kind == "last":
        runs = [*others, root]
    if kind == "best":
        metric, _, goal = metric.rpartition(":")
        sign = 1 if goal == "min" else -1
        inf = float("inf")
        runs.sort(key=lambda run: sign * value if (value := run.data.metrics.get(metric, inf)) == value else inf)
        runs.sort(key=lambda run: metric not in run.data.metrics)
    return runs


def _level(run: Any, others: list[Any]) -> int:
    parents = {each.info.run_id: each.data.tags.get(PARENT) for each in others}
    level, parent = 0, parents.get(run.info.run_id)
    while parent in parents and level < 20:
        level, parent = level + 1, parents[parent]
    return level


def _newest_model(run: Any) -> Any:
    """Name and address of the model that was logged to a run last, as the orchestrator takes it."""
    outputs = getattr(getattr(run, "outputs", None), "model_outputs", None) or []
    if outputs:
        newest = sorted(outputs, key=lambda output: output.step or 0)[-1].model_id
        return newest, f"models:/{newest}"
    try:
        paths = [entry["artifact_path"] for entry in json.loads(run.data.tags.get(HISTORY, "[]"))]
    except (ValueError, KeyError, TypeError):
        return None
    return (paths[-1], f"runs:/{run.info.run_id}/{paths[-1]}") if paths else None


main(json.loads(sys.argv[1]))
