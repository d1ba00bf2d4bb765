"""The model: a linear classifier, and how it is trained and judged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from digits.config import TrainingConfig
from digits.data import Data, Samples

CLASSES = np.arange(10)


def build(config: TrainingConfig) -> Pipeline:
    """The untrained model."""
    classifier = SGDClassifier(
        loss="log_loss",
        learning_rate="constant",
        eta0=config.learning_rate,
        alpha=config.alpha,
        random_state=config.seed,
    )
    return make_pipeline(StandardScaler(), classifier)


def fit(model: Pipeline, data: Data, *, epochs: int) -> Iterator[dict[str, float]]:
    """Train the model, and give the learning curve's next point after each epoch."""
    scaler, classifier = model[0], model[-1]
    scaler.fit(data.train.pictures)
    pictures = scaler.transform(data.train.pictures)
    for _ in range(epochs):
        classifier.partial_fit(pictures, data.train.digits, classes=CLASSES)
        yield {
            "train_accuracy": accuracy(model, data.train),
            "train_log_loss": loss(model, data.train),
            "validation_accuracy": accuracy(model, data.validation),
            "validation_log_loss": loss(model, data.validation),
        }


def accuracy(model: Pipeline, samples: Samples) -> float:
    """The share of pictures that are read rightly."""
    return float(accuracy_score(samples.digits, model.predict(samples.pictures)))


def loss(model: Pipeline, samples: Samples) -> float:
    """The cross-entropy of the predicted probabilities."""
    return float(log_loss(samples.digits, model.predict_proba(samples.pictures), labels=CLASSES))


def evaluate(model: Pipeline, samples: Samples) -> dict[str, float]:
    """The metrics that models are compared by."""
    guesses = model.predict(samples.pictures)
    return {
        "accuracy": accuracy(model, samples),
        "f1": float(f1_score(samples.digits, guesses, average="macro")),
        "log_loss": loss(model, samples),
    }
