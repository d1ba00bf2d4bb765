"""One setting decides where Dagster keeps its runs; without it everything lies where it always lay."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from orchestrator.errors import SettingsError
from orchestrator_tests.support.dockerfile import PROJECT

DAGSTER_YAML = PROJECT / "dagster.yaml"


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@dg.op
def greet() -> None:
    dg.get_dagster_logger().info("hello")


@dg.job
def greeting() -> None:
    greet()


def _files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*.db")}


def test_without_it_a_home_of_before_is_opened_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as before:
        run_id = greeting.execute_in_process(instance=before).run_id
    files = _files(home)
    shutil.copy(DAGSTER_YAML, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.is_success
        assert any(entry.user_message == "hello" for entry in instance.all_logs(run_id))
        second = greeting.execute_in_process(instance=instance).run_id
    assert _files(home) == files | {f"history/runs/{second}.db"}


def test_an_instance_without_a_dagster_home_has_its_own_folder(tmp_path: Path) -> None:
    shutil.copy(DAGSTER_YAML, tmp_path)
    script = (
        "from dagster._cli.utils import get_possibly_temporary_instance_for_cli as temporary\n"
        "import dagster as dg\n"
        "with temporary() as instance:\n"
        "    with dg.DagsterInstance.from_ref(instance.get_ref()) as other:\n"
        "        other.event_log_storage.set_concurrency_slots('p', 3)\n"
        "    print(instance.event_log_storage.get_concurrency_info('p').slot_count, instance.root_directory)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    slots, folder = run.stdout.split()
    assert slots == "3"
    assert Path(folder).parent == tmp_path
    assert not list(tmp_path.glob("**/*.db"))


@pytest.mark.parametrize("place", ["environment", "env file", "secrets directory"])
def test_it_is_read_wherever_settings_are(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DAGSTER_YAML, tmp_path)
    url = "mysql://u:s3cr3t@db/x"
    if place == "environment":
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    elif place == "env file":
        (tmp_path / ".env").write_text(f"DAGSTER_POSTGRES_URL='{url}'\n")
    else:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "DAGSTER_POSTGRES_URL").write_text(url)
        monkeypatch.setenv("ORCHESTRATOR_SECRETS_DIR", str(tmp_path / "secrets"))
    with pytest.raises(SettingsError, match="DAGSTER_POSTGRES_URL is no address of a PostgreSQL"):
        dg.DagsterInstance.from_config(str(tmp_path))


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DAGSTER_YAML, tmp_path)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://u:p@no-extra.invalid/x")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(SettingsError, match=r"pip install 'orchestrator\[postgres\]'"):
        dg.DagsterInstance.from_config(str(tmp_path))
