"""The code location: what it holds, that it is light, and that it loads with no setting at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.pipeline.component import TrainingPipeline

CONTEXT = dg.ComponentTree.for_test().load_context
HEAVY = ("mlflow", "pandas", "moto", "matplotlib", "asyncssh", "evidently", "flask", "sklearn", "numpy", "PIL")


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    from orchestrator.definitions import defs

    return defs.get_repository_def()


def test_loading_the_code_location_imports_nothing_heavy() -> None:
    program = f"import sys, orchestrator.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_names_and_the_settings_are_there_without_dagster() -> None:
    program = "import sys, orchestrator.names, orchestrator.settings; print('dagster' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_what_is_shared_forces_no_executor_on_others() -> None:
    from orchestrator.definitions import shared

    assert shared().executor is None


def test_the_code_location_loads_with_no_setting_at_all(tmp_path: Path) -> None:
    program = "from orchestrator.definitions import defs; print(sorted(defs.get_repository_def().job_names))"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean, cwd=tmp_path
    )
    assert "training_training" in loaded.stdout


def test_the_names_that_users_rely_on(repository: dg.RepositoryDefinition) -> None:
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert {"training/jenkins_build", "training/trained_model"} <= keys
    assert repository.has_sensor_def("training_jenkins_sensor")
    assert repository.has_job("training_training")
    asset = repository.asset_graph.get(dg.AssetKey(["training", "trained_model"]))
    assert isinstance(asset.partitions_def, dg.DynamicPartitionsDefinition)
    assert asset.partitions_def.name == "training_builds"


def test_the_sensor_is_on_by_default(repository: dg.RepositoryDefinition) -> None:
    assert repository.get_sensor_def("training_jenkins_sensor").default_status == dg.DefaultSensorStatus.RUNNING


def test_the_implicit_asset_job_runs_in_one_process_too(repository: dg.RepositoryDefinition) -> None:
    assert repository.get_implicit_global_asset_job_def().executor_def.name == "in_process"


def test_two_pipelines_live_in_one_code_location() -> None:
    both = dg.Definitions.merge(
        *(
            TrainingPipeline(name=name, settings={"JENKINS_JOB_NAME": name}).build_defs(CONTEXT)
            for name in ("churn", "fraud")
        ),
        dg.Definitions(
            resources={
                key: dg.ResourceDefinition.none_resource()
                for key in (
                    names.ResourceKey.ATTEMPTS,
                    names.ResourceKey.JENKINS,
                    names.ResourceKey.EC2,
                    names.ResourceKey.SSH,
                    names.ResourceKey.MLFLOW,
                )
            }
        ),
    )
    repository = both.get_repository_def()
    assert repository.has_job("churn_training")
    assert repository.has_sensor_def("fraud_jenkins_sensor")
