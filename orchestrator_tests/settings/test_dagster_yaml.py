"""A dagster.yaml of the user's own must use what is set, or the start is refused in words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.settings.dagster_yaml import BROKER, LAUNCHER, LOGS_S3, POSTGRES_URL, require_effect, without_effect
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.dockerfile import PROJECT

URL = "postgresql://u:p@h/d"
OURS = (PROJECT / "dagster.yaml").read_text()
OWN = "telemetry: {enabled: false}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (POSTGRES_URL, LOGS_S3, LAUNCHER, BROKER):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "variables", "words"),
    [
        (
            OWN,
            {POSTGRES_URL: URL},
            ["DAGSTER_POSTGRES_URL has no effect", "class: Storage", "take DAGSTER_POSTGRES_URL"],
        ),
        ("", {POSTGRES_URL: URL}, ["DAGSTER_POSTGRES_URL has no effect"]),
        ("storage: {sqlite: {base_dir: /x}}", {POSTGRES_URL: URL}, ["in place of its `storage`"]),
        ("run_storage: {module: m, class: C}", {POSTGRES_URL: URL}, ["in place of its `run_storage`"]),
        (OWN, {LOGS_S3: "s3://b/p"}, ["COMPUTE_LOGS_S3 has no effect"]),
        (OWN, {BROKER: "redis://h/0"}, ["CELERY_BROKER_URL has no effect", "class: Chosen"]),
        (OWN, {LAUNCHER: "docker"}, ["RUN_LAUNCHER has no effect"]),
        (OWN, {POSTGRES_URL: URL, LOGS_S3: "s3://b/p"}, ["DAGSTER_POSTGRES_URL has", "COMPUTE_LOGS_S3 has"]),
    ],
)
def test_what_has_no_effect_is_named_with_what_to_write(
    text: str, variables: dict[str, str], words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "dagster.yaml").write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        require_effect(home)
    for word in words:
        assert word in str(refused.value)
    assert "u:p" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        (OURS, {POSTGRES_URL: URL, LOGS_S3: "s3://b/p", BROKER: "redis://h/0"}),
        (OWN, {}),
        (OWN, {LAUNCHER: "local", BROKER: "redis://h/0"}),
        ("storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}", {POSTGRES_URL: URL}),
        ("storage: [", {POSTGRES_URL: URL}),  # Dagster says what is wrong with it
        ("- a list", {POSTGRES_URL: URL}),
        (None, {POSTGRES_URL: URL}),
    ],
)
def test_what_is_used_is_not_complained_about(
    text: str | None, variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (home / "dagster.yaml").write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert list(without_effect(home)) == []


def test_it_is_read_from_env_files_too(home: Path) -> None:
    (home / "dagster.yaml").write_text(OWN)
    (home / ".env").write_text(f"{POSTGRES_URL}={URL}\n")
    (home / ".env").chmod(0o600)
    assert len(list(without_effect(home))) == 1


def test_serve_does_not_start(home: Path) -> None:
    (home / ".dagster").mkdir()
    (home / ".dagster" / "dagster.yaml").write_text(OWN)
    shutil.copy(PROJECT / "workspace.yaml", home)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(PROJECT), POSTGRES_URL: URL}
    argv = [sys.executable, "-m", "orchestrator.cli", "serve", "--port", str(free_port())]
    ended = subprocess.run(argv, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "orchestrator: DAGSTER_POSTGRES_URL has no effect" in ended.stderr
