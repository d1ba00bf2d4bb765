"""Dagster instances of a test's own. Creating their databases takes a second, copying them does not."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg


@functools.cache
def _template() -> tempfile.TemporaryDirectory[str]:
    """A DAGSTER_HOME with empty databases; it lives as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="dagster-template-")
    with dg.instance_for_test(temp_dir=folder.name) as instance:
        instance.get_runs(limit=1)
        instance.event_log_storage.get_maximum_record_id()
        instance.all_instigator_state()
    return folder


@contextmanager
def new_instance(**kwargs: Any) -> Iterator[dg.DagsterInstance]:
    """An empty instance, which DAGSTER_HOME leads to.

    Args:
        kwargs: what `dg.instance_for_test` takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "dagster"
        shutil.copytree(_template().name, home)
        with dg.instance_for_test(temp_dir=str(home), **kwargs) as instance:
            yield instance
