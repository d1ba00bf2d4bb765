"""Where `orchestrator serve` finds what it serves."""

from __future__ import annotations

import socket
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.errors import SettingsError
from orchestrator.operate.home import prepare_home
from orchestrator.operate.serve import (
    limit_instances,
    max_instances,
    require_free,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return tmp_path


def test_a_port_counts_as_taken_only_while_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on port {port} of 127.0.0.1"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_explained() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on port 3000 of 192\.0\.2\.1: .* --port or --host"):
        require_free("192.0.2.1", 3000)


@pytest.mark.parametrize("wrong", ["0", "many", "2.5"])
def test_a_limit_of_instances_that_is_none_is_refused_before_anything_starts(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_INSTANCES", wrong)
    with pytest.raises(SettingsError, match=f"MAX_INSTANCES='{wrong}' is wrong"):
        max_instances()


def test_the_limit_of_instances_may_stand_in_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAX_INSTANCES", raising=False)
    assert max_instances() is None
    (tmp_path / ".env").write_text("MAX_INSTANCES=7\n")
    assert max_instances() == 7


def test_the_limit_of_instances_is_the_pool_s_from_the_first_run_on(here: Path) -> None:
    prepare_home(here / "home")
    limit_instances(here / "home", 3)
    limit_instances(here / "home", 2)
    with dg.DagsterInstance.from_config(str(here / "home")) as instance:
        (pool,) = instance.event_log_storage.get_pool_limits()
    assert (pool.name, pool.limit, pool.from_default) == (names.INSTANCE_POOL, 2, False)


def test_a_limit_cannot_be_set_by_a_dagster_yaml_that_is_wrong(here: Path) -> None:
    (here / "dagster.yaml").write_text("no_such_section: 1\n")
    with pytest.raises(SettingsError, match=rf"cannot use {here}/dagster\.yaml: .*no_such_section") as refused:
        limit_instances(here, 2)
    assert "\n" not in str(refused.value)
