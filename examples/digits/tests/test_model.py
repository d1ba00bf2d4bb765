"""What must hold of every commit before it is worth a training."""

from __future__ import annotations

import pytest
from digits import data, model
from digits.config import TrainingConfig
from digits.data import Data

SIZE = 600


@pytest.fixture(scope="module")
def sets() -> Data:
    return data.load(seed=1, size=SIZE)


def test_no_picture_is_in_two_sets(sets: Data) -> None:
    all_sets = (sets.train, sets.validation, sets.test)
    assert sum(len(samples.digits) for samples in all_sets) == SIZE
    pictures = {row.tobytes() for samples in all_sets for row in samples.pictures.to_numpy()}
    assert len(pictures) == SIZE


def test_every_set_has_every_digit(sets: Data) -> None:
    for samples in (sets.train, sets.validation, sets.test):
        assert set(samples.digits) == set(model.CLASSES)


def test_the_loss_goes_down_and_the_model_reads_most_digits(sets: Data) -> None:
    classifier = model.build(TrainingConfig(seed=1))
    curve = list(model.fit(classifier, sets, epochs=8))
    assert len(curve) == 8
    assert curve[-1]["train_log_loss"] < curve[0]["train_log_loss"]
    assert model.evaluate(classifier, sets.test)["accuracy"] > 0.85


def test_a_seed_gives_the_same_model_twice(sets: Data) -> None:
    config = TrainingConfig(seed=3)
    first, second = (list(model.fit(model.build(config), sets, epochs=2)) for _ in range(2))
    assert first == second
