"""What Dagster shows of a trained model: metrics over builds, tables, learning curves, links and cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from orchestrator.names import LOGGED_SOMETHING, MlflowTag
from orchestrator.pipeline.training.curves import SYSTEM, Curves, as_markdown, learning_curves
from orchestrator.pipeline.training.model_run import best_by, has_logged
from orchestrator.printable import printable, without_colours
from orchestrator.resources.jenkins import commit_url
from orchestrator.resources.mlflow.history import INFINITE

if TYPE_CHECKING:
    from orchestrator.pipeline.training.finished import FinishedTraining
    from orchestrator.resources.jenkins.answers import Build
    from orchestrator.resources.mlflow.answers import Run

MAX_PLOTTED = 50
"""Metrics with an entry of their own, and so a plot over builds; each makes every page of the asset longer."""

MAX_COMPARED = 10
"""Metrics whose best runs are shown."""

MAX_ROWS = 200
MAX_TEXT = 500

Metadata = dict[str, dg.MetadataValue]


def training_metadata(finished: FinishedTraining, build: Build) -> Metadata:
    """The metadata of one materialisation of `P/trained_model`; what is unknown is left out.

    Each metric is a float named `metrics/<name>`, which Dagster plots over the partitions.

    Args:
        finished: what MLflow holds of it, and what its instance was and cost.
        build: the Jenkins build that was trained.
    """
    run, root, usage = finished.run, finished.root, finished.usage
    known: dict[str, dg.MetadataValue | None] = {
        "MLflow run": dg.MetadataValue.url(finished.url) if finished.url else None,
        "MLflow run ID": dg.MetadataValue.text(run.id),
        "model": _text(finished.reason),
        "MLflow run of the training": _text(root.id if root.id != run.id else None),
        "registered models": _registered(finished),
        "Jenkins build": dg.MetadataValue.url(build.url),
        **_code(root, build),
        "learning curves": _picture(finished.histories),
        "instance": _text(usage.instance_id if usage else None),
        "instance type": _text(usage.instance_type if usage else None),
        "market": _text(usage.market if usage else None),
        "training minutes": _number(usage.minutes if usage else None),
        "cost in USD": _number(usage.usd if usage else None),
        "metrics": _metrics_table(run),
        "parameters": _parameters_table({**root.params, **run.params}),
        "runs": _runs_table(finished),
        "best runs": _best_runs_table(finished),
        **{f"metrics/{_clean(key)}": _number(run.metrics[key]) for key in _important_first(run.metrics)[:MAX_PLOTTED]},
    }
    return {key: value for key, value in known.items() if value is not None}


def logged_something(finished: FinishedTraining, asset: dg.AssetKey) -> dg.AssetCheckResult:
    """Whether the training left anything to show: a green run that did not is most likely a mistake."""
    run = finished.run
    passed = has_logged(run) or bool(finished.registered)
    missing = (
        f"MLflow run {run.id} has neither a metric nor a model: does the script call MLflow, "
        "and fill the run that MLFLOW_RUN_ID names (the first `mlflow.start_run()` does)?"
    )
    return dg.AssetCheckResult(
        check_name=LOGGED_SOMETHING,
        asset_key=asset,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None if passed else missing,
        metadata={"metrics": len(run.latest), "runs": 1 + len(finished.others)},
    )


def _code(run: Run, build: Build) -> Mapping[str, dg.MetadataValue | None]:
    """What was trained: the commit, unless MLflow says that an image ran which nobody had put it into."""
    if run.tags.get(MlflowTag.BUILD_IMAGE) != "false" or run.tags.get(MlflowTag.PROJECT_ENV) != "docker":
        return {"commit": _commit(build.repository, build.commit)}
    image = _shortened(run.tags.get(MlflowTag.DOCKER_IMAGE) or "unknown")
    other = f"commit {build.commit}" if build.commit else "the build's commit"
    return {"code": _text(f"code of image {image} (MLPROJECT_BUILD_IMAGE is false), not of {other}")}


def _commit(repository: str | None, commit: str | None) -> dg.MetadataValue | None:
    if commit is None:
        return None
    page = commit_url(repository, commit) if repository else None
    return dg.MetadataValue.url(page) if page else dg.MetadataValue.text(commit)


def _picture(histories: Curves) -> dg.MetadataValue | None:
    picture = learning_curves(histories)
    return dg.MetadataValue.md(as_markdown(picture)) if picture else None


def _metrics_table(run: Run) -> dg.MetadataValue | None:
    rows: list[Mapping[str, str | float | int]] = [
        {"metric": _shortened(key), "value": _json_safe(run.latest[key].value), "step": run.latest[key].step}
        for key in _important_first(run.latest)
    ]
    return _table(rows, {"metric": "string", "value": "float", "step": "int"})


def _parameters_table(params: Mapping[str, str]) -> dg.MetadataValue | None:
    rows = [{"parameter": _shortened(key), "value": _shortened(params[key])} for key in sorted(params)]
    return _table(rows, {"parameter": "string", "value": "string"})


def _registered(finished: FinishedTraining) -> dg.MetadataValue | None:
    names = [
        f"{each.version.model} v{each.version.version}"
        + (f" (of run {each.run.name or each.run.id})" if each.run.id != finished.run.id else "")
        for each in finished.registered
    ]
    return _text(_shortened(", ".join(names)))


def _runs_table(finished: FinishedTraining) -> dg.MetadataValue | None:
    if not finished.others:
        return None
    rows = [
        {
            "run": _shortened(run.name),
            "run ID": run.id,
            "status": run.status,
            "what": ", ".join(_roles(run, finished)),
            "metrics": _shortened(", ".join(_named(key, run.metrics[key]) for key in _important_first(run.metrics))),
        }
        for run in (finished.root, *finished.others)
    ]
    return _table(rows, dict.fromkeys(("run", "run ID", "status", "what", "metrics"), "string"))


def _roles(run: Run, finished: FinishedTraining) -> list[str]:
    roles = {
        "the model": run.id == finished.run.id,
        "the training's own": run.id == finished.root.id,
        "has a model": run.has_model,
    }
    return [role for role, true in roles.items() if true]


def _best_runs_table(finished: FinishedTraining) -> dg.MetadataValue | None:
    """Both ends of each metric that several runs have: whether more is better, only its author knows."""
    runs = [finished.root, *(run for run in finished.others if run.status == "FINISHED")]
    counted = Counter(key for run in runs for key in run.latest)
    shared = [key for key in _important_first(counted) if counted[key] > 1][:MAX_COMPARED]
    rows: list[Mapping[str, str | float | int]] = []
    for metric in shared:
        highest, lowest = (best_by(metric, runs, highest=end) for end in (True, False))
        if highest and lowest:
            rows.append(
                {
                    "metric": _shortened(metric),
                    "highest": _json_safe(highest.metrics[metric]),
                    "of run": _shortened(highest.name or highest.id),
                    "lowest": _json_safe(lowest.metrics[metric]),
                    "of the run": _shortened(lowest.name or lowest.id),
                }
            )
    columns = {"metric": "string", "highest": "float", "of run": "string", "lowest": "float", "of the run": "string"}
    return _table(rows, columns)


def _table(rows: Sequence[Mapping[str, str | float | int]], columns: Mapping[str, str]) -> dg.MetadataValue | None:
    if not rows:
        return None
    records = [dg.TableRecord(dict(row)) for row in rows[:MAX_ROWS]]
    if remaining := len(rows) - len(records):
        # Dagster wants the same fields in every record.
        first, *others = columns
        records.append(dg.TableRecord({first: f"… and {remaining} more, see MLflow", **dict.fromkeys(others)}))
    return dg.MetadataValue.table(
        records=records,
        schema=dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in columns.items()]),
    )


def _important_first(keys: Iterable[str]) -> list[str]:
    """The training's own metrics before those of the machine that it ran on."""
    return sorted(keys, key=lambda key: (key.startswith(SYSTEM), key))


def _number(value: float | None) -> dg.MetadataValue | None:
    if value is None:
        return None
    safe = _json_safe(value)
    return dg.MetadataValue.text(safe) if isinstance(safe, str) else dg.MetadataValue.float(safe)


def _json_safe(value: float) -> float | str:
    """NaN and infinity as text.

    JSON has no number for them, so Dagster's page would not load; and the largest float, which MLflow's databases keep
    in infinity's place, would flatten the plot over all builds.
    """
    if math.isnan(value):
        return str(value)
    if abs(value) >= INFINITE:
        return "inf" if value > 0 else "-inf"
    return float(value)


def _named(key: str, value: float) -> str:
    safe = _json_safe(value)
    return f"{key} {safe}" if isinstance(safe, str) else f"{key} {safe:g}"


def _text(value: str | None) -> dg.MetadataValue | None:
    return dg.MetadataValue.text(_clean(value)) if value else None


def _shortened(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _clean(text: str) -> str:
    """Without what speaks to a terminal: a training may call its metrics, parameters and runs anything."""
    return without_colours(printable(text[: 4 * MAX_TEXT]))
