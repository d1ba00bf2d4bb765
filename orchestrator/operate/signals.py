"""What a signal that asks us to end does: unwind, so that every `with` cleans up, and clean up in peace."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def unwind_on_signals() -> None:
    """From now on, the first signal raises SystemExit with 128 + its number; the ones after it do nothing."""
    for number in ENDING:
        signal.signal(number, _unwind)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal interrupt the cleaning up that is done meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in ENDING]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)
