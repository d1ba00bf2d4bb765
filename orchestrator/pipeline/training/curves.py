"""Learning curves of a training as one small picture."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.resources.mlflow.answers import MetricPoint, Run
from orchestrator.resources.mlflow.history import HistoryThinner

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_LINES = 6
MAX_POINTS = 400
"""More points than this would be less than two pixels apart."""

MAX_MARKERS = 30
COLOURS = 32
SEPARATOR = r"[_/.\-\s]+"
DATASET = r"(?<![a-z0-9])(train(ing)?|val(id(ation)?)?|eval(uation)?|test)(_?\d+)?(?![a-z0-9])"
"""How frameworks name the data set that a metric was measured on; XGBoost counts them: `validation_0`."""

SYSTEM = "system/"
"""Prefix of MLflow's system metrics (CPU, memory, ...), https://mlflow.org/docs/latest/ml/tracking/system-metrics"""

Curves = Mapping[str, Sequence[MetricPoint]]


def curve_metrics(run: Run) -> list[str]:
    """The metrics whose history is worth fetching: those with steps, as many as the picture can show."""
    stepped = [key for key, point in run.latest.items() if point.step > 0 and not key.startswith(SYSTEM)]
    return [key for keys in panels(stepped).values() for key in keys]


def panels(keys: Iterable[str]) -> dict[str, list[str]]:
    """Which metrics share a panel: those that differ in the data set only, `train_loss` and `val_loss`.

    Returns:
        Title → metrics, those in company first, and no more than fit into the picture.
    """
    grouped: dict[str, list[str]] = {}
    for key in sorted(keys):
        grouped.setdefault(_without_dataset(key), []).append(key)
    telling_first = sorted(grouped.items(), key=lambda group: (-len(group[1]), group[0]))[:MAX_PANELS]
    return {title if len(members) > 1 else members[0]: members[:MAX_LINES] for title, members in telling_first}


def learning_curves(histories: Curves) -> bytes | None:
    """Draw the metrics that have at least two steps.

    It has a background of its own, so that it can be read on a light and on a dark page.

    Returns:
        A PNG of some ten kilobytes; None when there is nothing to draw.
    """
    drawable = {key: shown for key, points in histories.items() if len(shown := _drawable(points)) > 1}
    if not drawable:
        return None
    # The object-oriented interface: pyplot keeps every figure, and looks for a display.
    from matplotlib.figure import Figure

    grouped = panels(drawable)
    columns = min(3, len(grouped))
    rows = math.ceil(len(grouped) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), dpi=80, facecolor="white", layout="constrained")
    for place, (title, keys) in enumerate(grouped.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw(axes, title, {key: drawable[key] for key in keys})
    return _small_png(figure)


def as_markdown(picture: bytes) -> str:
    """The picture as Markdown that Dagster's user interface shows in place."""
    return f"![learning curves](data:image/png;base64,{base64.b64encode(picture).decode()})"


def _small_png(figure: Figure) -> bytes:
    """As PNG with a palette, which is a third of the size of one with full colours."""
    from PIL import Image

    drawn, reduced = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A metric may be called anything; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(COLOURS).save(reduced, format="png", optimize=True)
    return reduced.getvalue()


def _draw(axes: Axes, title: str, curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    for key, points in curves.items():
        marker = "o" if len(points) <= MAX_MARKERS else ""
        steps, values = [point.step for point in points], [point.value for point in points]
        axes.plot(steps, values, label=_text(key), linewidth=1.5, marker=marker, markersize=3)
    axes.set_title(_text(title), fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False)


def _drawable(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """One point per step, the last one, without NaN and infinity; of many, those that the curve's shape needs."""
    by_step = {point.step: point for point in points}
    thinner = HistoryThinner(most_buckets=MAX_POINTS // 4)
    thinner.add(by_step.values())
    return thinner.points()


def _without_dataset(key: str) -> str:
    left = re.split(SEPARATOR, re.sub(DATASET, "", key, flags=re.IGNORECASE))
    return "_".join(word for word in left if word) or key


def _text(name: str) -> str:
    """A name as matplotlib is to show it: `$` would begin a formula, a leading `_` hides a line."""
    short = name if len(name) <= 40 else f"{name[:39]}…"
    return short.replace("$", r"\$").lstrip("_") or "_"
