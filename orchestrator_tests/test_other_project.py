"""Somebody else's Dagster project: it installs ours, scaffolds a pipeline, and adds what all pipelines share."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

DEFINITIONS = """
from pathlib import Path

import dagster as dg

from orchestrator.definitions import shared


@dg.asset
def report() -> None: ...


defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    shared(),
    dg.Definitions(assets=[report], resources={"ssh": "theirs", "mlflow": "theirs"}),
)
"""

LOOK = """
import json
import dagster as dg
from acme.definitions import defs

repository = defs.get_repository_def()
with dg.DagsterInstance.ephemeral() as instance:
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    tick = repository.get_sensor_def("janitor").evaluate_tick(context)
print(json.dumps({
    "assets": sorted(key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()),
    "janitor": tick.skip_message,
    "their executor": repository.get_implicit_global_asset_job_def().executor_def.name,
    "our executor": repository.get_job("churn_training").executor_def.name,
}))
"""

REGISTER = """
import dagster as dg

with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("churn_builds", ["7"])
"""

MATERIALIZE = "asset materialize -m acme.definitions --select churn/trained_model --partition 7"


class OtherProject:
    """A project in a folder of its own, with an environment that has ours installed.

    Args:
        root: an empty folder.
        python: the environment's interpreter.
    """

    def __init__(self, root: Path, python: Path) -> None:
        self._root = root
        self._python = python
        (root / "acme" / "defs").mkdir(parents=True)
        (root / "acme" / "__init__.py").touch()
        (root / "acme" / "definitions.py").write_text(DEFINITIONS)
        (root / "home").mkdir()
        (root / "pyproject.toml").write_text(
            '[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "acme"\n'
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python in the project, with nothing of ours in the environment's variables."""
        clean = {
            "PATH": f"{self._python.parent}:/usr/bin:/bin",
            "HOME": str(self._root),
            "PYTHONPATH": str(self._root),
            "DAGSTER_HOME": str(self._root / "home"),
            "DAGSTER_TELEMETRY_ENABLED": "false",
        }
        done = subprocess.run(
            [self._python, *command], cwd=self._root, env=clean, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def look(self) -> dict[str, object]:
        """What its code location holds, and what the janitor says in it."""
        found: dict[str, object] = json.loads(self.run("-c", LOOK).stdout.splitlines()[-1])
        return found

    def dg(self, *arguments: str) -> str:
        """Run `dg`."""
        return self.run("-m", "dagster_dg_cli.cli", *arguments).stdout


def assert_usable(project: OtherProject) -> None:
    project.dg("scaffold", "defs", "TrainingPipeline", "churn")
    assert "validated successfully" in project.dg("check", "yaml")
    found = project.look()
    assert found["assets"] == ["churn/jenkins_build", "churn/trained_model", "janitor", "report"]
    assert "the settings of pipeline 'churn' cannot be used" in str(found["janitor"])
    assert "'training'" not in str(found["janitor"]), "our own default pipeline is not theirs"
    assert found["our executor"] == "in_process"
    assert found["their executor"] == "multi_or_in_process_executor"


@pytest.mark.services
def test_a_pipeline_is_scaffolded_loaded_and_watched_in_an_empty_project(tmp_path: Path) -> None:
    assert_usable(OtherProject(tmp_path, Path(sys.executable)))


@pytest.mark.services
def test_a_run_with_a_process_per_step_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    project = OtherProject(tmp_path, Path(sys.executable))
    project.dg("scaffold", "defs", "TrainingPipeline", "churn")
    project.run("-c", REGISTER)
    refused = project.run("-m", "dagster", *MATERIALIZE.split(), check=False)
    assert refused.returncode != 0
    assert "launch it by the job churn_training" in refused.stdout + refused.stderr


@pytest.mark.services
def test_the_wheel_alone_is_enough(tmp_path: Path) -> None:
    """Built and installed as pip does it, with what it depends on taken from the environment of the tests."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", REPOSITORY], check=True)
    [wheel] = (tmp_path / "dist").glob("orchestrator-*.whl")
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    own = next((tmp_path / "env" / "lib").glob("python3*")) / "site-packages"
    # A plain path, whose own .pth files are not followed: the editable install of this repository stays out.
    (own / "tests_environment.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (tmp_path / "project").mkdir()
    project = OtherProject(tmp_path / "project", python)
    where = project.run("-c", "import orchestrator; print(orchestrator.__file__)").stdout
    assert where.startswith(str(own))
    assert_usable(project)

    # And as a code location of its own, with the pipelines of a folder outside of any package.
    pipelines = tmp_path / "pipelines" / "fraud"
    pipelines.mkdir(parents=True)
    (pipelines / "defs.yaml").write_text("type: orchestrator.pipeline.component.TrainingPipeline\n")
    program = "from orchestrator.definitions import defs; print(sorted(defs.get_repository_def().job_names))"
    for variables, job in (({}, "training_training"), ({"ORCHESTRATOR_DEFS": str(pipelines.parent)}, "fraud_training")):
        loaded = subprocess.run(
            [python, "-c", program],
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert loaded.stdout.strip() == f"['__ASSET_JOB', '{job}']"
