"""Patience as a value: how often, how long, at what intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tenacity

from orchestrator.resources.retry import RetryPolicy

POLICY = RetryPolicy(total_seconds=60, connect_seconds=1, answer_seconds=1, first_pause_seconds=1, jitter=False)
ANY_ERROR = tenacity.retry_if_exception_type(OSError)


class Away:
    """Somebody who does not answer.

    Attributes:
        asked: how often it was asked.
        pauses: those between the questions, in seconds.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.pauses: list[float] = []

    def __call__(self) -> str:
        self.asked += 1
        raise OSError(f"away, {self.asked}")

    def ask(self, policy: RetryPolicy, *, stop: tenacity.stop.stop_base | None = None) -> None:
        policy.retrying(retry=ANY_ERROR, stop=stop, sleep=self.pauses.append)(self)


def test_without_patience_there_is_one_try() -> None:
    away = Away()
    with pytest.raises(OSError, match="away, 1"):
        away.ask(POLICY.with_total(0))
    assert (away.asked, away.pauses) == (1, [])


def test_the_pauses_double_up_to_the_longest_and_the_last_error_is_raised() -> None:
    away = Away()
    with pytest.raises(OSError, match="away, 5"):
        away.ask(replace(POLICY, longest_pause_seconds=3, max_attempts=5))
    assert away.pauses == [1, 2, 3, 3]


def test_with_jitter_no_pause_is_longer_than_without() -> None:
    away = Away()
    with pytest.raises(OSError, match="away, 5"):
        away.ask(replace(POLICY, longest_pause_seconds=3, max_attempts=5, jitter=True))
    assert all(pause <= longest for pause, longest in zip(away.pauses, [1, 2, 3, 3], strict=True))


def test_no_try_is_begun_after_the_time_is_over() -> None:
    away = Away()
    with pytest.raises(OSError, match="away, 1"):
        away.ask(replace(POLICY, total_seconds=5, first_pause_seconds=10))
    assert away.pauses == []


def test_a_caller_may_have_another_reason_to_give_up() -> None:
    away = Away()
    with pytest.raises(OSError, match="away, 2"):
        away.ask(POLICY, stop=tenacity.stop_after_attempt(2))
    assert away.asked == 2


def test_polling_ends_with_the_last_answer() -> None:
    polling = POLICY.with_total(0).polling(retry=tenacity.retry_if_result(lambda state: state == "pending"))
    with pytest.raises(tenacity.RetryError) as caught:
        polling(lambda: "pending")
    assert caught.value.last_attempt.result() == "pending"
    assert polling(lambda: "running") == "running"
