"""A real PostgreSQL for the tests of `make test-services`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.postgres import Postgres

OpenInstance = Callable[[str], dg.DagsterInstance]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def open_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenInstance:
    """Open Dagster with our dagster.yaml on a URL."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)

    def open_it(url: str) -> dg.DagsterInstance:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
        return dg.DagsterInstance.from_config(str(tmp_path))

    return open_it
