"""The model: a linear classifier of 8x8 pictures of digits, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

CLASSES = np.arange(10)


@dataclass(frozen=True)
class Samples:
    """Pictures, one per row, and the digit on each."""

    pictures: np.ndarray[Any, Any]
    digits: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Data:
    """Three sets that share no picture."""

    train: Samples
    validation: Samples
    test: Samples


def load(seed: int = 0, size: int | None = None) -> Data:
    """Split the digits that come with scikit-learn 60:20:20; ``size`` limits how many are used."""
    pictures, digits = load_digits(return_X_y=True)
    pictures, digits = pictures[:size], digits[:size]
    train, rest, train_digits, rest_digits = train_test_split(
        pictures, digits, test_size=0.4, random_state=seed, stratify=digits
    )
    half = len(rest) // 2
    return Data(
        train=Samples(train, train_digits),
        validation=Samples(rest[:half], rest_digits[:half]),
        test=Samples(rest[half:], rest_digits[half:]),
    )


def build(*, learning_rate: float = 0.02, alpha: float = 0.0001, seed: int = 0) -> Pipeline:
    """The untrained model."""
    classifier = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=learning_rate, alpha=alpha, random_state=seed
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
