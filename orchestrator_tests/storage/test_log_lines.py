"""Lines of a log that wait to be written together."""

from __future__ import annotations

import gc
import weakref

from orchestrator.storage.log_lines import LogLines


def test_lines_of_a_storage_that_is_gone_are_not_kept_in_memory() -> None:
    lines = LogLines(lambda events: None)
    reference = weakref.ref(lines)
    del lines
    gc.collect()
    assert reference() is None
