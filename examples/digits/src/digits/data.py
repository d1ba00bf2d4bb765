"""Extract, transform, split: from the pictures as they come to three sets that share none."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TARGET = "digit"
BRIGHTEST = 16.0


@dataclass(frozen=True)
class Samples:
    """Pictures, one per row with a column per pixel, and the digit on each."""

    pictures: pd.DataFrame
    digits: pd.Series[int]


@dataclass(frozen=True)
class Data:
    """Three sets that share no picture."""

    train: Samples
    validation: Samples
    test: Samples


def extract(size: int | None = None) -> pd.DataFrame:
    """The pictures that come with scikit-learn, and the column `digit`; `size` limits how many."""
    frame = load_digits(as_frame=True).frame
    return frame.rename(columns={"target": TARGET}).head(size or len(frame))


def transform(raw: pd.DataFrame) -> pd.DataFrame:
    """What can be learnt from: no picture twice, none incomplete, each pixel from 0 (white) to 1 (black).

    Raises:
        ValueError: a pixel is outside its range: the data is of another kind.
    """
    pixels = raw.columns.difference([TARGET], sort=False)
    rows = raw.dropna().drop_duplicates(subset=list(pixels))
    if not rows[pixels].stack().between(0, BRIGHTEST).all():
        raise ValueError(f"a pixel is not from 0 to {BRIGHTEST:g}")
    return rows.assign(**{name: rows[name] / BRIGHTEST for name in pixels}).reset_index(drop=True)


def split(rows: pd.DataFrame, *, seed: int = 0) -> Data:
    """Split 60:20:20, each set with the same share of each digit."""
    train, rest = train_test_split(rows, test_size=0.4, random_state=seed, stratify=rows[TARGET])
    half = len(rest) // 2
    validation, test = rest.iloc[:half], rest.iloc[half:]
    return Data(train=_samples(train), validation=_samples(validation), test=_samples(test))


def load(*, seed: int = 0, size: int | None = None) -> Data:
    """All three steps."""
    return split(transform(extract(size)), seed=seed)


def _samples(rows: pd.DataFrame) -> Samples:
    return Samples(pictures=rows.drop(columns=TARGET), digits=rows[TARGET])
