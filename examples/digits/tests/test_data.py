from __future__ import annotations

import pandas as pd
import pytest
from digits import data
from digits.data import TARGET


def test_what_cannot_be_learnt_from_is_left_out() -> None:
    raw = data.extract(50)
    incomplete = raw.iloc[[1]].assign(pixel_3_3=float("nan"))
    worse = pd.concat([raw, raw.iloc[[0]], incomplete], ignore_index=True)
    assert len(data.transform(worse)) == len(data.transform(raw))


def test_pixels_are_between_white_and_black() -> None:
    rows = data.transform(data.extract(50)).drop(columns=TARGET)
    assert rows.min().min() == 0.0
    assert rows.max().max() == 1.0


def test_data_of_another_kind_is_refused() -> None:
    raw = data.extract(50)
    with pytest.raises(ValueError, match="not from 0 to 16"):
        data.transform(raw.assign(pixel_3_3=255.0))
