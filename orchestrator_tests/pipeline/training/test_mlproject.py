"""What the commit's MLproject says against a training is known early; nothing that MLflow would run is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import BuildUnusable, OrchestratorError, SettingsError
from orchestrator.pipeline.training.mlproject import MlProject, require_runnable
from orchestrator.pipeline.training.plan import Plan
from orchestrator.resources.jenkins.answers import Build
from orchestrator_sandbox.git import GitRemote

GOOD = """
name: churn
entry_points:
  main:
    parameters:
      alpha: {type: float, default: 0.5}
      data: path
      epochs: {type: int}
    command: "true"
  plain:
    command: "true"
"""

BRANCHES: Mapping[str, Mapping[str, str]] = {
    "main": {"MLproject": GOOD, "train.py": "", "sub/models/MLproject": GOOD, "sub/models/fit.py": ""},
    "lower-case": {"mlproject": GOOD},
    "no-file": {"train.py": ""},
    "broken": {"MLproject": "entry_points: [\n"},
    "a-list": {"MLproject": "- entry_points\n"},
    "no-conda": {"MLproject": "conda_env: conda.yaml\nentry_points: {main: {command: 'true'}}\n"},
    "conda": {"MLproject": "conda_env: env/c.yaml\nentry_points: {main: {command: 'true'}}\n", "env/c.yaml": "{}"},
    "docker": {"MLproject": "docker_env: {image: x}\nentry_points: {main: {command: 'true'}}\n"},
}


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitRemote]:
    directory = tmp_path_factory.mktemp("projects")
    (directory / "empty").mkdir()
    (directory / "empty" / "README").write_text("x")
    with GitRemote(directory / "git", directory / "empty") as served:
        for branch, files in BRANCHES.items():
            if branch != "main":
                served.commit(branch, files, branch=branch)
        served.commit("link", lambda tree: (tree / "MLproject").symlink_to("train.py"), branch="link")
        served.commit("main", BRANCHES["main"])
        yield served


def plan(remote: str, branch: str, *, folder: str = "", entry_point: str = "main", **parameters: str) -> Plan:
    return Plan(
        pipeline="churn",
        partition="1",
        build=Build(
            job="churn", number=1, timestamp=1, result="SUCCESS", duration_ms=1, url="http://jenkins/job/churn/1/"
        ),
        project_uri=remote + folder,
        version=branch,
        entry_point=entry_point,
        parameters=parameters,
        instance_type=None,
        max_minutes=1.0,
    )


@pytest.mark.parametrize(
    ("branch", "folder", "entry_point"),
    [
        ("main", "", "main"),
        ("main", "", "plain"),
        ("main", "", "train.py"),
        ("main", "#sub/models", "main"),
        ("main", "#sub/models", "fit.py"),
        ("lower-case", "", "main"),
        ("no-file", "", "train.py"),
        ("conda", "", "main"),
        ("docker", "", "main"),
        ("link", "", "anything"),
    ],
)
def test_what_mlflow_would_run_is_let_through(remote: GitRemote, branch: str, folder: str, entry_point: str) -> None:
    require_runnable(plan(remote.url, branch, folder=folder, entry_point=entry_point, data="/x", epochs="1"))


@pytest.mark.parametrize(
    ("branch", "folder", "entry_point", "kind", "sentence"),
    [
        ("main", "", "fit", SettingsError, "no entry point 'fit' (it has: main, plain): correct MLPROJECT_ENTRY_POINT"),
        ("main", "", "tarin.py", SettingsError, "tarin.py is no file"),
        ("main", "", "main", SettingsError, "wants values for data, epochs: give them in MLPROJECT_PARAMETERS"),
        ("main", "#sub", "main", BuildUnusable, "There is no MLproject in the folder sub"),
        ("main", "#models", "main", SettingsError, "no folder 'models'"),
        ("no-file", "", "main", BuildUnusable, "There is no MLproject in the root"),
        ("broken", "", "main", BuildUnusable, "MLproject in broken of git://"),
        ("a-list", "", "main", BuildUnusable, "it holds no mapping"),
        ("no-conda", "", "main", BuildUnusable, "names conda_env conda.yaml, and there is no such file"),
    ],
)
def test_what_mlflow_would_refuse_is_refused_with_what_to_do(
    remote: GitRemote, branch: str, folder: str, entry_point: str, kind: type[OrchestratorError], sentence: str
) -> None:
    with pytest.raises(kind) as error:
        require_runnable(plan(remote.url, branch, folder=folder, entry_point=entry_point))
    assert sentence in str(error.value)


def test_a_remote_that_cannot_be_reached_from_here_refuses_nothing(remote: GitRemote) -> None:
    require_runnable(plan("git://127.0.0.1:9/nothing.git", "main"))
    require_runnable(plan(remote.url, "no-such-branch"))


@given(st.one_of(st.binary(), st.text().map(str.encode), st.just(b"a: &a [*a]"), st.just(b"a: 2026-13-45")))
def test_any_file_is_read_or_refused_in_words(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        MlProject.parse(content)


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["name", "entry_points", "docker_env", "conda_env", "python_env"]), YAML_VALUES))
def test_a_mapping_of_any_shape_is_read(data: dict[str, object]) -> None:
    import yaml

    project = MlProject.parse(yaml.safe_dump(data).encode())
    assert all(isinstance(name, str) for name in project.entry_points)


@pytest.mark.services
def test_what_is_required_is_what_mlflow_itself_asks_for(tmp_path: Path) -> None:
    (tmp_path / "MLproject").write_text(GOOD)
    process = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", "--env-manager=local", str(tmp_path)],
        env={
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No value given for missing parameters: 'data', 'epochs'" in process.stderr
    assert MlProject.parse(GOOD.encode()).entry_points["main"].required == ("data", "epochs")
