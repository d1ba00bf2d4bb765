"""What must hold of every commit before it is worth a training."""

from __future__ import annotations

import model
import pytest

SIZE = 600


@pytest.fixture(scope="module")
def data() -> model.Data:
    return model.load(seed=1, size=SIZE)


def test_no_picture_is_in_two_sets(data: model.Data) -> None:
    sets = (data.train, data.validation, data.test)
    assert sum(len(samples.digits) for samples in sets) == SIZE
    pictures = {row.tobytes() for samples in sets for row in samples.pictures}
    assert len(pictures) == SIZE


def test_every_set_has_every_digit(data: model.Data) -> None:
    for samples in (data.train, data.validation, data.test):
        assert set(samples.digits) == set(model.CLASSES)


def test_the_loss_goes_down_and_the_model_reads_most_digits(data: model.Data) -> None:
    classifier = model.build(seed=1)
    curve = list(model.fit(classifier, data, epochs=8))
    assert len(curve) == 8
    assert curve[-1]["train_log_loss"] < curve[0]["train_log_loss"]
    assert model.evaluate(classifier, data.test)["accuracy"] > 0.85


def test_a_seed_gives_the_same_model_twice(data: model.Data) -> None:
    first, second = (list(model.fit(model.build(seed=3), data, epochs=2)) for _ in range(2))
    assert first == second
