"""A Hugging Face Space: its repository, what is refused in it, and what is refused before it is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli.main import main
from orchestrator.errors import SettingsError
from orchestrator.operate.space.repository import write_space
from orchestrator.operate.space.rules import require_space_rules

ROOT = Path(__file__).parents[2]
SET = {
    "SPACE_ID": "acme/orchestrator",
    "SSH_PORT": "443",
    "DAGSTER_POSTGRES_URL": "postgresql://u:p@db.example.com:443/orchestrator?sslmode=require",
    "JENKINS_URL": "https://jenkins.example.com/",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
}


def test_a_space_that_has_all_that_it_needs_may_start() -> None:
    require_space_rules(SET.get)
    require_space_rules({"SSH_PORT": "22"}.get)  # nowhere near a Space
    opened = {"SPACE_PORTS": "443, 5432,22", "SSH_PORT": "22", "DAGSTER_POSTGRES_URL": "postgres://u:p@db/x"}
    require_space_rules({**SET, **opened}.get)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"DAGSTER_POSTGRES_URL": ""}, "DAGSTER_POSTGRES_URL is not set: the disk of a Space is lost at each restart"),
        ({"DAGSTER_POSTGRES_URL": "postgresql://u:p@db.example.com/x"}, "DAGSTER_POSTGRES_URL leads to port 5432"),
        (
            {"DAGSTER_POSTGRES_URL": "postgres://u:p@db.example.com:6543/x?a=b"},
            "DAGSTER_POSTGRES_URL leads to port 6543",
        ),
        ({"DAGSTER_POSTGRES_URL": "postgres://u:8080@[2001:db8::1]:5433/x"}, "DAGSTER_POSTGRES_URL leads to port 5433"),
        ({"SSH_PORT": ""}, "SSH_PORT is 22, which does not get out: set it to 443"),
        ({"SSH_PORT": "2222"}, "SSH_PORT is 2222"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.example.com:5000"}, "MLFLOW_TRACKING_URI leads to port 5000"),
        ({"JENKINS_URL": "http://ada:s3cret@jenkins.example.com:8081/jenkins"}, "JENKINS_URL leads to port 8081"),
        ({"SPACE_PORTS": "http"}, "SPACE_PORTS='http' is wrong"),
    ],
)
def test_what_cannot_work_in_a_space_is_refused_by_name(changed: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)) as refused:
        require_space_rules({**SET, **changed}.get)
    assert "s3cret" not in str(refused.value)


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(SettingsError, match=r"DAGSTER_POSTGRES_URL is not set.*SSH_PORT is 22.*Settings > Variables"):
        require_space_rules({"SPACE_ID": "acme/x"}.get)


def test_serve_refuses_to_start_in_such_a_space(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "SPACE_ID": "acme/x", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "--host", "0.0.0.0", "--port", "7860"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("orchestrator: a Hugging Face Space lets out what goes to ports 80, 443, 8080 only: ")
    assert not list(tmp_path.iterdir())


def written(directory: Path, **changed: object) -> list[str]:
    arguments = {"title": "Acme", "deployment": "acme", "source": ROOT, "image": None, "pipelines": None, **changed}
    return write_space(directory, **arguments)  # type: ignore[arg-type]


def test_the_repository_has_what_hugging_face_and_the_dockerfile_want(tmp_path: Path) -> None:
    pipelines = tmp_path / "pipelines"
    (pipelines / "churn").mkdir(parents=True)
    (pipelines / "churn" / "defs.yaml").write_text("type: orchestrator.pipeline.component.TrainingPipeline\n")
    (pipelines / ".env").write_text("JENKINS_TOKEN=not-to-be-copied\n")
    space = tmp_path / "space"
    (space / ".git").mkdir(parents=True)
    (space / ".git" / "config").write_text("")
    for _ in range(2):
        written(space, pipelines=pipelines)
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    front_matter = yaml.safe_load(front)
    assert front_matter == {
        "title": "Acme",
        "emoji": front_matter["emoji"],
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "docker",
        "app_port": 7860,
        "hf_oauth": True,
        "pinned": False,
    }
    assert "sleeps after 48 hours" in text.splitlines()[0]
    dockerfile = (space / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!.*--from=)(.+)", dockerfile, re.MULTILINE):
        *names, _ = (word for word in line.split() if not word.startswith("--"))
        assert all((space / name).exists() for name in names), line
    assert "ORCHESTRATOR_DEPLOYMENT=acme\n" in dockerfile
    assert (space / "pipelines" / "churn" / "defs.yaml").exists()
    assert (space / ".git" / "config").exists()
    assert not list(space.rglob(".env")) + list(space.rglob("__pycache__"))
    assert (space / ".dockerignore").read_text().endswith("!space-entrypoint.sh\n!pipelines\n")


def test_its_image_has_what_the_database_needs_that_a_space_must_have(tmp_path: Path) -> None:
    written(tmp_path / "space")
    extras = re.findall(r"^ARG EXTRAS=(.*)$", (tmp_path / "space" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(extras) == {"postgres"}


def test_an_image_that_was_built_elsewhere_needs_no_checkout(tmp_path: Path) -> None:
    written(tmp_path / "space", image="ghcr.io/acme/orchestrator:1", source=tmp_path)
    assert (tmp_path / "space" / "Dockerfile").read_text().startswith("FROM ghcr.io/acme/orchestrator:1\n")
    with pytest.raises(SettingsError, match="no Dockerfile"):
        written(tmp_path / "other", source=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("token: of-jenkins-1234", "holds the value of JENKINS_TOKEN"),
        ("key: AKIA" + "ABCDEFGHIJKLMNOP", "looks like a key or token"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1r" * 6, "looks like a key or token"),
        ("hf_" + "a" * 34, "looks like a key or token"),
    ],
)
def test_a_secret_in_it_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setenv("JENKINS_TOKEN", "of-jenkins-1234")
    (tmp_path / "mine" / "churn").mkdir(parents=True)
    (tmp_path / "mine" / "churn" / "defs.yaml").write_text(text)
    with pytest.raises(SettingsError, match=words) as refused:
        written(tmp_path / "space", pipelines=tmp_path / "mine", image="x")
    assert "pipelines/churn/defs.yaml" in str(refused.value)
    assert "1234" not in str(refused.value)
    assert not (tmp_path / "space").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["space", str(tmp_path), "--image", "x"]) == 1
    assert "holds thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert main(["space", str(tmp_path / "new"), "--image", "x", "--title", "a\nb: c"]) == 2


def test_the_ssh_key_of_a_space_becomes_a_file_and_no_variable(tmp_path: Path) -> None:
    written(tmp_path / "space", image="x")
    (tmp_path / "orchestrator-container").write_text(
        '#!/bin/sh\necho "${SSH_PRIVATE_KEY-unset}" "$@"; cat "$KEY_PATH"\n'
    )
    (tmp_path / "orchestrator-container").chmod(0o755)
    key = "-----BEGIN KEY-----\n$(id) 'x'\n-----END KEY-----"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KEY_PATH": f"{tmp_path}/key", "SSH_PRIVATE_KEY": key}
    script = tmp_path / "space" / "space-entrypoint.sh"
    done = subprocess.run(["sh", str(script), "serve"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"unset serve\n{key}\n"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
