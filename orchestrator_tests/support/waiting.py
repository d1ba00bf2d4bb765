"""Awaits a condition instead of sleeping for a guess; for all tests with threads or processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tenacity

T = TypeVar("T")


def until(condition: Callable[[], T], *, seconds: float = 60, every: float = 0.05) -> T:
    """Return the first truthy answer of `condition`; fail the test when there is none in time.

    Args:
        condition: asked again and again.
        seconds: how long to wait at most.
        every: seconds between two questions.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda answer: not answer),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(every),
        retry_error_callback=lambda state: None,
    )
    answer = retrying(condition)
    assert answer, f"still not so after {seconds} s: {condition}"
    return answer
