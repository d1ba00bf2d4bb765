"""What Dagster shows of a trained model: metrics over builds, tables, learning curves, links and cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg

from orchestrator.names import MlflowTag
from orchestrator.pipeline.training.curves import SYSTEM, Curves, as_markdown, learning_curves

if TYPE_CHECKING:
    from orchestrator.pipeline.training.finished import FinishedTraining
    from orchestrator.resources.jenkins.answers import Build
    from orchestrator.resources.mlflow.answers import Run

MAX_PLOTTED = 50
"""Metrics with an entry of their own, and so a plot over builds; each makes every page of the asset longer."""

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
    run, usage = finished.run, finished.usage
    known: dict[str, dg.MetadataValue | None] = {
        "MLflow run": dg.MetadataValue.url(finished.url),
        "MLflow run ID": dg.MetadataValue.text(run.id),
        "Jenkins build": dg.MetadataValue.url(build.url),
        **_code(run, build),
        "learning curves": _picture(finished.histories),
        "instance": _text(usage.instance_id if usage else None),
        "instance type": _text(usage.instance_type if usage else None),
        "market": _text(usage.market if usage else None),
        "training minutes": _number(usage.minutes if usage else None),
        "cost in USD": _number(usage.usd if usage else None),
        "metrics": _metrics_table(run),
        "parameters": _parameters_table(run.params),
        **{f"metrics/{key}": _number(run.metrics[key]) for key in _important_first(run.metrics)[:MAX_PLOTTED]},
    }
    return {key: value for key, value in known.items() if value is not None}


def commit_url(repository: str, commit: str) -> str | None:
    """The web page of a commit.

    Args:
        repository: a Git remote: https, ssh, git, or `git@host:path`.
        commit: its full or abbreviated hash.

    Returns:
        None unless it is hosted by GitHub, GitLab or Bitbucket, or by a host called after one of the first two.
    """
    scp_like = re.fullmatch(r"(?:[^@/]+@)?([^:/@]+):(?!//)/?(.+)", repository)
    address = f"ssh://{scp_like[1]}/{scp_like[2]}" if scp_like else repository
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    path = parts.path.strip("/").removesuffix(".git")
    pages = next((pages for forge, pages in _COMMIT_PAGES.items() if re.fullmatch(forge, host)), None)
    if pages is None or not path or not re.fullmatch(r"[0-9a-fA-F]{7,64}", commit):
        return None
    scheme = "http" if parts.scheme == "http" else "https"
    web_host = f"{host}:{port}" if port and parts.scheme in ("http", "https") else host
    return f"{scheme}://{web_host}/{path}/{pages}/{commit}"


_COMMIT_PAGES = {
    r"(.*\.)?github\..+": "commit",
    r"(.*\.)?gitlab\..+": "-/commit",
    r"bitbucket\.org": "commits",
}


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
        {"metric": key, "value": _json_safe(run.latest[key].value), "step": run.latest[key].step}
        for key in _important_first(run.latest)
    ]
    return _table(rows, {"metric": "string", "value": "float", "step": "int"})


def _parameters_table(params: Mapping[str, str]) -> dg.MetadataValue | None:
    rows = [{"parameter": key, "value": _shortened(params[key])} for key in sorted(params)]
    return _table(rows, {"parameter": "string", "value": "string"})


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
    """NaN and infinity as text: JSON has no number for them, so Dagster's page would not load."""
    return float(value) if math.isfinite(value) else str(value)


def _text(value: str | None) -> dg.MetadataValue | None:
    return dg.MetadataValue.text(value) if value else None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
