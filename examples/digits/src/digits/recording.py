"""Train, evaluate, and record all of it in the MLflow run that is open."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.sklearn
from matplotlib.figure import Figure
from mlflow.models import infer_signature
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.pipeline import Pipeline

import digits
from digits import data, model
from digits.config import TrainingConfig
from digits.data import TARGET, Data, Samples

REFERENCE_ROWS = 10_000
VERSION_TAG = "digits.version"
"""Which wheel was trained with."""


def train(config: TrainingConfig, sets: Data) -> Pipeline:
    """Train, and record the package's version, parameters and learning curves."""
    mlflow.set_tag(VERSION_TAG, digits.__version__)
    mlflow.log_params(dataclasses.asdict(config))
    print(f"{len(sets.train.digits)} pictures to learn from", flush=True)
    classifier = model.build(config)
    curve = []
    for epoch, point in enumerate(model.fit(classifier, sets, epochs=config.epochs), start=1):
        mlflow.log_metrics(point, step=epoch)
        curve.append(point)
        print(
            f"epoch {epoch:3}/{config.epochs}  loss {point['train_log_loss']:.4f}"
            f"  validation accuracy {point['validation_accuracy']:.4f}",
            flush=True,
        )
    mlflow.log_figure(_curves(curve), "plots/log_loss.png")
    return classifier


def evaluate(classifier: Pipeline, test: Samples) -> dict[str, float]:
    """Judge the model on pictures that it has never seen, and record metrics, data and plots."""
    metrics = model.evaluate(classifier, test)
    mlflow.log_metrics(metrics)
    # As numbers that may be missing, or MLflow warns that whole ones may not.
    rows = test.pictures.assign(**{TARGET: test.digits.astype(float)})
    mlflow.log_input(mlflow.data.from_pandas(rows, targets=TARGET, name="digits-test"), context="evaluation")
    mlflow.log_figure(_confusion(classifier, test), "plots/confusion.png")
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)
    return metrics


def record_model(classifier: Pipeline, sets: Data) -> None:
    """Record the model with its signature and an input example, and the data that it was trained on as reference."""
    example = sets.test.pictures.head(5)
    mlflow.sklearn.log_model(
        classifier,
        name="model",
        signature=infer_signature(example, classifier.predict(example)),
        input_example=example,
        # Named, as MLflow would otherwise load the model in another process to find them out.
        pip_requirements=[f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "pandas")],
    )
    pictures = sets.train.pictures.head(REFERENCE_ROWS)
    digits = sets.train.digits.head(REFERENCE_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.parquet"
        pictures.assign(**{TARGET: digits}, prediction=classifier.predict(pictures)).to_parquet(file)
        mlflow.log_artifact(str(file))
    print("model recorded", flush=True)


def run(config: TrainingConfig) -> None:
    """One whole training: extract, transform, train, evaluate, record."""
    sets = data.load(seed=config.seed)
    classifier = train(config, sets)
    evaluate(classifier, sets.test)
    record_model(classifier, sets)


def _curves(points: Iterable[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="log loss")
    points = list(points)
    for name in ("train_log_loss", "validation_log_loss"):
        axes.plot(range(1, len(points) + 1), [point[name] for point in points], label=name.removesuffix("_log_loss"))
    axes.legend()
    return figure


def _confusion(classifier: Pipeline, samples: Samples) -> Figure:
    figure = Figure(figsize=(6, 6), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        samples.digits, classifier.predict(samples.pictures), ax=figure.add_subplot(), colorbar=False
    )
    return figure
