"""Lines of a log that wait to be written together."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
from dagster import EventLogEntry

from orchestrator.storage.log_lines import LogLines
from orchestrator_tests.support.waiting import until


def line(text: str) -> EventLogEntry:
    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None, level=20, user_message=text, run_id="run", timestamp=1.0, step_key=None, job_name=None,
        dagster_event=None,
    )  # fmt: skip


def test_lines_of_a_storage_that_is_gone_are_not_kept_in_memory() -> None:
    lines = LogLines(lambda events, may_be_there: None)
    reference = weakref.ref(lines)
    del lines
    gc.collect()
    assert reference() is None


class Unsure:
    """Writes, but cannot say so the first time."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.doubts: list[bool] = []

    def insert(self, events: Sequence[EventLogEntry], may_be_there: bool) -> None:
        self.doubts.append(may_be_there)
        self.written += [event.user_message for event in events if event.user_message not in self.written]
        if len(self.doubts) == 1:
            raise ConnectionError


def test_who_writes_lines_that_another_thread_has_failed_with_looks_whether_they_are_there() -> None:
    writer = Unsure()
    lines = LogLines(writer.insert)
    lines.add(line("a"))
    with pytest.raises(ConnectionError):
        lines.write()
    lines.add(line("b"))
    until(lambda: len(writer.doubts) == 2)  # by the thread that writes late
    lines.write_with(line("c"))
    assert writer.written == ["a", "b", "c"]
    assert writer.doubts == [False, True, False]
