"""Where `orchestrator serve` finds what it serves."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.errors import DagsterDown, SettingsError
from orchestrator.operate import serve
from orchestrator.operate.serve import (
    dagster_home,
    is_loopback,
    limit_instances,
    max_instances,
    prepare_home,
    project_file,
    require_free,
    script,
)

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return tmp_path


def test_a_file_of_the_folder_we_are_in_comes_before_the_package_s_own(here: Path) -> None:
    assert project_file("dagster.yaml") == PROJECT / "dagster.yaml"
    (here / "dagster.yaml").touch()
    assert project_file("dagster.yaml") == here / "dagster.yaml"


def test_a_file_that_is_nowhere_is_explained(here: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no nothing\.yaml in .*; go to the project's folder first"):
        project_file("nothing.yaml")


def test_an_installed_wheel_brings_the_files_that_a_folder_without_a_project_lacks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = here / "site-packages" / "orchestrator"
    package.mkdir(parents=True)
    monkeypatch.setattr(serve, "PACKAGE", package)
    with pytest.raises(SettingsError, match=r"there is no workspace\.yaml in"):
        project_file("workspace.yaml")
    (package / "workspace.yaml").touch()
    assert project_file("workspace.yaml") == package / "workspace.yaml"


def test_dagster_home_is_taken_from_the_environment_then_from_dotenv_then_from_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dagster_home() == here / ".dagster"
    (here / ".env").write_text("DAGSTER_HOME=elsewhere\n")
    assert dagster_home() == here / "elsewhere"
    monkeypatch.setenv("DAGSTER_HOME", "/srv/dagster")
    assert dagster_home() == Path("/srv/dagster")


def test_the_project_s_dagster_yaml_rules_a_home_that_has_none(here: Path) -> None:
    assert prepare_home(here / "home") == PROJECT / "dagster.yaml"
    assert prepare_home(here / "home") == PROJECT / "dagster.yaml"


def test_a_home_with_its_own_dagster_yaml_keeps_it(here: Path) -> None:
    own = here / "dagster.yaml"
    own.write_text("telemetry: {enabled: false}\n")
    assert prepare_home(here) == own
    assert own.read_text() == "telemetry: {enabled: false}\n"


def test_a_link_to_a_project_that_has_moved_is_made_anew(here: Path) -> None:
    (here / "home").mkdir()
    (here / "home" / "dagster.yaml").symlink_to(here / "moved away" / "dagster.yaml")
    assert prepare_home(here / "home") == PROJECT / "dagster.yaml"


@pytest.mark.parametrize(
    ("host", "safe"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_whoever_listens_beyond_this_machine_is_told_apart(host: str, safe: bool) -> None:
    assert is_loopback(host) is safe


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


def test_dagster_s_programs_are_those_of_our_own_environment() -> None:
    assert Path(script("dagster-daemon")).parent == Path(sys.executable).parent
    with pytest.raises(DagsterDown, match=r"there is no program dagster-demon in .*; install dagster-demon there"):
        script("dagster-demon")
