"""Where a variable comes from: the environment, `.env`, the secrets directory; the same in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.settings import MachineSettings, QueueSettings, SettingsSource
from orchestrator.settings.variables import lookup, lookup_all, require_private_env_file
from orchestrator_tests.support.environment import COMPLETE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the process stands in, with a secrets directory."""
    (tmp_path / "secrets").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_SECRETS_DIR", "secrets")
    return tmp_path


def test_the_environment_is_stronger_than_env_file_and_that_than_the_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B", "C"):
        (folder / "secrets" / name).write_text(f"secret {name}\n")
    (folder / ".env").write_text('A=file\nB="file B"  # why\n')
    monkeypatch.setenv("A", "environment")
    assert lookup_all(["A", "B", "C", "D"]) == {"A": "environment", "B": "file B", "C": "secret C", "D": None}


def test_an_empty_variable_hides_none_and_is_not_unset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "")
    monkeypatch.setenv("B", "")
    (folder / ".env").write_text("A=file\n")
    assert lookup("A") == "file"
    assert lookup("B") == ""
    assert SettingsSource().raw("SUBNET_ID") is None


def test_files_are_read_when_they_are_used(folder: Path) -> None:
    source = SettingsSource(pipeline="churn", from_env={"AMI_ID": "CHURN_AMI"})
    assert source.raw("AMI_ID") is None
    (folder / ".env").write_text("CHURN_AMI=ami-1\n")
    assert source.raw("AMI_ID") == "ami-1"
    (folder / ".env").write_text("CHURN_AMI=ami-2\n")
    assert source.raw("AMI_ID") == "ami-2"


def test_defs_yaml_is_stronger_than_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READY_MINUTES", "1")
    (folder / ".env").write_text("\n".join(f"{name}={value}" for name, value in COMPLETE.items()))
    source = SettingsSource(pipeline="churn", values={"READY_MINUTES": "3"})
    assert source.read(MachineSettings).ready_minutes == 3
    assert source.read(MachineSettings).ami == COMPLETE["AMI_ID"]


def test_the_secrets_directory_may_be_named_in_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_SECRETS_DIR")
    (folder / "secrets" / "MAX_INSTANCES").write_text("3\n")
    assert SettingsSource().read(QueueSettings).max_instances is None
    (folder / ".env").write_text("ORCHESTRATOR_SECRETS_DIR=secrets\n")
    assert SettingsSource().read(QueueSettings).max_instances == 3


def test_a_mounted_secret_is_a_link_and_beside_it_lies_a_folder(folder: Path) -> None:
    """As Kubernetes does it."""
    (folder / "secrets" / "..data").mkdir()
    (folder / "secrets" / "..data" / "A").write_text("secret\n")
    (folder / "secrets" / "A").symlink_to("..data/A")
    (folder / "secrets" / "B").mkdir()
    assert lookup_all(["A", "B"]) == {"A": "secret", "B": None}


def test_a_source_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_bytes(b"A=caf\xe9\n")
    with pytest.raises(SettingsError, match=r"\.env is not UTF-8"):
        lookup("A")
    (folder / ".env").unlink()
    (folder / "secrets" / "A").write_bytes(b"caf\xe9")
    with pytest.raises(SettingsError, match="secrets/A is not UTF-8"):
        lookup("A")
    monkeypatch.setenv("ORCHESTRATOR_SECRETS_DIR", "nowhere")
    with pytest.raises(SettingsError, match="ORCHESTRATOR_SECRETS_DIR names nowhere, which is no folder"):
        lookup("B")


def run(folder: Path, program: str, **environment: str) -> dict[str, str | None]:
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=clean, capture_output=True, text=True, check=True
    )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


LOOK = """
import json
from orchestrator.settings.variables import lookup_all
print(json.dumps(lookup_all(["A", "B", "C"])))
"""


def test_a_fresh_process_prefers_its_environment_to_env_file(folder: Path) -> None:
    (folder / ".env").write_text("A=file\nB=file\n")
    (folder / "secrets" / "C").write_text("secret")
    found = run(folder, LOOK, A="environment", ORCHESTRATOR_SECRETS_DIR="secrets")
    assert found == {"A": "environment", "B": "file", "C": "secret"}


def test_dagsters_own_commands_write_env_file_over_their_environment(folder: Path) -> None:
    """Pinned, because the documentation says so: `dagster dev` and the like do it before any code of ours runs."""
    (folder / ".env").write_text("A=file\n")
    (folder / "probe.py").write_text(f"import dagster as dg\n{LOOK}\ndefs = dg.Definitions()\n")
    command = "import sys, runpy; sys.argv = 'dagster job list -m probe'.split(); runpy.run_module('dagster')"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "A": "environment", "DAGSTER_TELEMETRY_ENABLED": "false"}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=folder, env=clean, capture_output=True, text=True, check=True
    )
    assert '"A": "file"' in done.stdout + done.stderr


def test_aws_credentials_of_env_file_and_secrets_reach_boto3(folder: Path) -> None:
    (folder / ".env").write_text("AWS_ACCESS_KEY_ID=from-file\nAWS_DEFAULT_REGION=eu-central-1\n")
    (folder / "secrets" / "AWS_SECRET_ACCESS_KEY").write_text("from-secrets\n")
    program = """
import json, boto3, orchestrator.definitions
session = boto3.Session()
found = session.get_credentials()
print(json.dumps({"id": found.access_key, "secret": found.secret_key, "region": session.region_name}))
"""
    secrets = {"ORCHESTRATOR_SECRETS_DIR": "secrets"}
    assert run(folder, program, **secrets) == {"id": "from-file", "secret": "from-secrets", "region": "eu-central-1"}
    found = run(folder, program, **secrets, AWS_ACCESS_KEY_ID="from-environment")
    assert found["id"] == "from-environment"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o666])
def test_an_env_file_that_others_may_read_or_change_is_refused_with_the_chmod_that_mends_it(
    folder: Path, mode: int
) -> None:
    file = folder / ".env"
    file.write_text("JENKINS_TOKEN=s3cr3t\n")
    file.chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:o}") as error:
        require_private_env_file()
    command = str(error.value).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    require_private_env_file()


def test_an_env_file_in_a_folder_with_a_space_gets_a_chmod_that_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "my project").mkdir()
    monkeypatch.chdir(folder / "my project")
    Path(".env").touch(0o644)
    Path(".env").chmod(0o644)
    with pytest.raises(SettingsError) as error:
        require_private_env_file()
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    assert Path(".env").stat().st_mode & 0o777 == 0o600


def test_a_link_to_an_env_file_counts_as_the_file_behind_it(folder: Path) -> None:
    (folder / "shared.env").write_text("A=1\n")
    (folder / "shared.env").chmod(0o644)
    (folder / ".env").symlink_to("shared.env")
    with pytest.raises(SettingsError, match="other users"):
        require_private_env_file()


def test_no_env_file_and_a_private_one_are_fine(folder: Path) -> None:
    require_private_env_file()
    (folder / ".env").touch(0o600)
    require_private_env_file()


def test_an_env_file_of_a_kubernetes_volume_is_taken_as_it_is(folder: Path) -> None:
    (folder / "..2026_11_27").mkdir()
    (folder / "..2026_11_27" / ".env").write_text("A=1\n")
    (folder / "..2026_11_27" / ".env").chmod(0o644)
    (folder / "..data").symlink_to("..2026_11_27")
    (folder / ".env").symlink_to("..data/.env")
    require_private_env_file()
