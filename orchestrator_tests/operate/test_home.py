"""The folder that Dagster keeps everything in, and the project's files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.operate import home
from orchestrator.operate.home import dagster_home, keep_private, prepare_home, private_files, project_file

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
    monkeypatch.setattr(home, "PACKAGE", package)
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


@pytest.mark.parametrize("blocked", ["home", "home/dagster"])
def test_a_home_that_cannot_be_written_is_named_with_what_mends_it(here: Path, blocked: str) -> None:
    (here / "home").write_text("a file\n")
    with pytest.raises(SettingsError, match=r"cannot write to DAGSTER_HOME .*/home.*: .*chown [0-9]+ "):
        prepare_home(here / blocked)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_an_earlier_start_let_others_read_is_closed_to_them(here: Path) -> None:
    old = here / "home"
    for folder in ("history", "storage/run/compute_logs", "mine"):
        (old / folder).mkdir(parents=True)
    files = [old / name for name in ("history/runs.db", "storage/run/compute_logs/step.out", "mine/notes")]
    for file in files:
        file.touch()
        file.chmod(0o644)
    (old / "history" / "elsewhere").symlink_to(here / "mine")
    (here / "mine").touch(0o644)
    (here / "mine").chmod(0o644)
    old.chmod(0o755)
    keep_private(old)
    assert mode(old) == 0o700
    assert [mode(file) for file in files] == [
        0o600,
        0o600,
        0o644,
    ]  # the last one is not Dagster's
    assert mode(old / "storage" / "run") == 0o700
    assert mode(here / "mine") == 0o644


def test_a_home_whose_mode_cannot_be_changed_is_named_and_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (here / "home").mkdir(mode=0o755)
    (here / "home").chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    keep_private(here / "home")
    assert f"Other users may read {here / 'home'}, and its mode cannot be changed" in caplog.text


def test_a_home_that_does_not_exist_is_no_error(here: Path) -> None:
    keep_private(here / "none")


def test_files_are_private_while_serving_only(here: Path) -> None:
    before = os.umask(0o022)
    try:
        with private_files():
            (here / "log").touch()
        (here / "later").touch()
    finally:
        os.umask(before)
    assert [mode(here / name) for name in ("log", "later")] == [0o600, 0o644]
