"""A signal unwinds once, and never in the middle of cleaning up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from orchestrator.operate.signals import ENDING, undisturbed, unwind_on_signals


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_unwinds_with_its_exit_status_and_the_next_ones_do_nothing(number: int) -> None:
    unwind_on_signals()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == 128 + number
    for again in ENDING:
        os.kill(os.getpid(), again)


def test_cleaning_up_is_not_interrupted_and_afterwards_signals_count_again() -> None:
    unwind_on_signals()
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def test_cleaning_up_in_another_thread_needs_no_signal_handlers() -> None:
    cleaned = threading.Event()

    def clean_up() -> None:
        with undisturbed():
            cleaned.set()

    thread = threading.Thread(target=clean_up)
    thread.start()
    thread.join()
    assert cleaned.is_set()
