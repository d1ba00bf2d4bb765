"""The component: what stands in a defs.yaml, how it is checked, and what a new one looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.scaffold.scaffold import NoParams
from pydantic import ValidationError

from orchestrator.errors import SettingsError
from orchestrator.pipeline.component import PipelineAttributes, PipelineScaffolder, TrainingPipeline
from orchestrator.pipeline.defs_folder import load_defs_folder
from orchestrator.settings.groups import all_settings, is_secret, per_pipeline

TYPE = "orchestrator.pipeline.component.TrainingPipeline"
DG = Path(sys.executable).with_name("dg")


def load(folder: Path, attributes: str) -> TrainingPipeline:
    """The pipeline that a defs.yaml with these attributes makes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defs.yaml").write_text(f"type: {TYPE}\nattributes: {attributes}\n")
    loaded = load_defs_folder(folder.parent)
    assert not loaded.broken, loaded.broken
    return next(pipeline for pipeline in loaded.pipelines if pipeline.name)


def project(root: Path) -> Path:
    """A Dagster project in which `dg` finds our component; returns its folder of pipelines."""
    package = root / "acme"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (root / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n'
        '[tool.dg.project]\nroot_module = "acme"\nregistry_modules = ["orchestrator.pipeline.component"]\n'
    )
    return package / "defs"


def dg_command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": f"{DG.parent}:/usr/bin:/bin", "HOME": str(root), "DAGSTER_HOME": "", "PYTHONPATH": str(root)}
    return subprocess.run([DG, *arguments], cwd=root, env=clean, capture_output=True, text=True, check=False)


def test_the_name_is_the_folders_unless_it_is_given(tmp_path: Path) -> None:
    assert load(tmp_path / "a" / "churn", "{}").name == "churn"
    assert load(tmp_path / "b" / "churn", "{name: fraud}").name == "fraud"
    assert load(tmp_path / "c" / "team" / "churn", "{}").name == "churn"


def test_everything_of_a_pipeline_has_the_folders_name(tmp_path: Path) -> None:
    assert load(tmp_path / "churn", "{}").pipeline_settings().pipeline == "churn"
    definitions = load_defs_folder(tmp_path).definitions
    assert {asset.key.path[0] for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition)} == {
        "churn"
    }
    assert [sensor.name for sensor in definitions.sensors or []] == ["churn_jenkins_sensor"]


@pytest.mark.parametrize(
    ("name", "instead"), [("churn-model", "churn_model"), ("7up", "pipeline_7up"), ("my churn", "my_churn")]
)
def test_a_name_that_cannot_be_one_is_refused_with_one_that_can(tmp_path: Path, name: str, instead: str) -> None:
    with pytest.raises(ValidationError, match=f"cannot be a pipeline's name.*`name: {instead}`"):
        PipelineAttributes.model_validate({"name": name})
    (tmp_path / name).mkdir()
    (tmp_path / name / "defs.yaml").write_text(f"type: {TYPE}\n")
    [broken] = load_defs_folder(tmp_path).broken
    assert f"the folder's name '{name}' cannot be a pipeline's name" in broken.fault
    assert f"`name: {instead}` under `attributes`" in broken.fault


def test_yaml_values_mean_what_the_environment_would_hold(tmp_path: Path) -> None:
    settings = load(
        tmp_path / "churn",
        "{settings: {SSH_PORT: 2222, MLPROJECT_PARAMETERS: {epochs: 20}, INSTANCE_TYPE: [g5.xlarge, g4dn.xlarge], "
        "MLFLOW_EXPERIMENT_ID: 7, TRAIN_UNSTABLE: true, READY_MINUTES: '1.5', SUBNET_ID: ''}}",
    ).pipeline_settings()
    assert settings.values == {
        "SSH_PORT": "2222",
        "MLPROJECT_PARAMETERS": '{"epochs": 20}',
        "INSTANCE_TYPE": "g5.xlarge,g4dn.xlarge",
        "MLFLOW_EXPERIMENT_ID": "7",
        "TRAIN_UNSTABLE": "true",
        "READY_MINUTES": "1.5",
        "SUBNET_ID": "",
    }


def test_a_template_is_filled_in_and_then_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_JOB", "team/churn")
    folder = tmp_path / "churn"
    assert load(folder, "{settings: {JENKINS_JOB_NAME: '{{ env.CHURN_JOB }}'}}").settings == {
        "JENKINS_JOB_NAME": "team/churn"
    }
    (folder / "defs.yaml").write_text(
        f"type: {TYPE}\nattributes:\n  settings: {{READY_MINUTES: '{{{{ env.CHURN_JOB }}}}'}}"
    )
    [broken] = load_defs_folder(tmp_path).broken
    assert "READY_MINUTES='team/churn' is wrong" in broken.fault


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"INSTANCE_TYP": "g5.xlarge"}, "there is no setting INSTANCE_TYP; did you mean INSTANCE_TYPE?"),
        ({"READY_MINUTES": "soon"}, "READY_MINUTES='soon' is wrong"),
        ({"READY_WHEN": "never"}, "READY_WHEN='never' is wrong"),
        ({"SSH_PORT": 99999}, "SSH_PORT='99999' is wrong"),
        ({"INSTANCE_MARKET": ["spot", "cheap"]}, "'cheap' is neither spot nor on-demand"),
        ({"SUBNET_ID": None}, "SUBNET_ID has no value"),
        ({"JENKINS_TOKEN": "11aa22bb33"}, "JENKINS_TOKEN is a secret.*settings_from_env: {JENKINS_TOKEN:"),
        ({"MLFLOW_TRACKING_URI": "https://bob:11aa22bb33@mlflow.example.com"}, "MLFLOW_TRACKING_URI holds a password"),
        ({"MAX_INSTANCES": 3}, "MAX_INSTANCES cannot stand here: .*holds for all pipelines"),
    ],
)
def test_a_fault_in_the_settings_is_one_sentence_and_shows_no_secret(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as refused:
        PipelineAttributes.model_validate({"settings": given})
    assert "11aa22bb33" not in str(refused.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        PipelineAttributes.model_validate({"settings": {"INSTANCE_TYP": "a", "READY_MINUTES": "soon"}})
    assert [fault["loc"] for fault in refused.value.errors()] == [
        ("settings", "INSTANCE_TYP"),
        ("settings", "READY_MINUTES"),
    ]


def test_a_variable_must_be_named_and_belong_to_a_setting_of_a_pipeline() -> None:
    for variables in ({"JENKINS_TOKE": "A"}, {"JENKINS_TOKEN": None}, {"JANITOR_DRY_RUN": "A"}):
        with pytest.raises(ValidationError):
            PipelineAttributes.model_validate({"settings_from_env": variables})


def test_the_schema_offers_each_setting_with_its_meaning_and_no_secret() -> None:
    definitions = PipelineAttributes.model_json_schema()["$defs"]
    own = {name: info for name, info in all_settings().items() if per_pipeline(name)}
    offered = definitions["SettingsBlock"]["properties"]
    assert offered.keys() == {name for name, info in own.items() if not is_secret(info)}
    assert definitions["VariablesBlock"]["properties"].keys() == own.keys()
    assert all(offered[name]["description"] == own[name].description for name in offered)
    assert definitions["SettingsBlock"]["additionalProperties"] is False


@pytest.mark.services
def test_dg_check_yaml_names_the_file_and_line_of_a_fault(tmp_path: Path) -> None:
    churn = project(tmp_path) / "churn"
    churn.mkdir()
    (churn / "defs.yaml").write_text(
        f"type: {TYPE}\nattributes:\n  settings:\n    INSTANCE_TYP: g5.xlarge\n    READY_MINUTES: soon\n"
        "    SSH_PORT: 99999\n    INSTANCE_TYPE: [a, b]\n    MLPROJECT_PARAMETERS: {epochs: 20}\n"
    )
    checked = dg_command(tmp_path, "check", "yaml", "acme/defs/churn")
    assert checked.returncode == 1
    lines = [line for line in checked.stdout.splitlines() if line.startswith(str(churn / "defs.yaml"))]
    assert sorted(line.partition(" - ")[0].rpartition(":")[2] for line in lines) == ["4", "5", "6"]
    assert "'INSTANCE_TYP' was unexpected" in checked.stdout
    assert "'soon'" in checked.stdout


@pytest.mark.services
@pytest.mark.parametrize("typename", [TYPE, "TrainingPipeline"])
def test_a_scaffolded_pipeline_loads_at_once(tmp_path: Path, typename: str) -> None:
    defs = project(tmp_path)
    written = dg_command(tmp_path, "scaffold", "defs", typename, "churn")
    assert written.returncode == 0, written.stderr
    assert "# " in (defs / "churn" / "defs.yaml").read_text()
    assert [pipeline.name for pipeline in load_defs_folder(defs).pipelines] == ["churn"]
    checked = dg_command(tmp_path, "check", "yaml", "acme/defs/churn")
    assert "validated successfully" in checked.stdout


def test_the_scaffolds_comments_are_valid_once_they_are_no_comments(tmp_path: Path) -> None:
    scaffold = dg.ScaffoldRequest(
        type_name=TYPE, target_path=tmp_path, scaffold_format="yaml", project_root=None, params=NoParams()
    )
    PipelineScaffolder().scaffold(scaffold)
    lines = (tmp_path / "defs.yaml").read_text().splitlines()
    live = "\n".join(
        line.replace("#", "", 1) if line.lstrip().startswith("#") and "# " not in line else line for line in lines
    )
    attributes = yaml.safe_load(live)["attributes"]
    assert PipelineAttributes.model_validate(attributes).settings.given()["INSTANCE_TYPE"] == "g5.xlarge,g4dn.xlarge"


def test_a_folder_that_cannot_be_a_name_gets_one_that_can(tmp_path: Path) -> None:
    folder = tmp_path / "churn-model"
    folder.mkdir()
    PipelineScaffolder().scaffold(
        dg.ScaffoldRequest(
            type_name=TYPE, target_path=folder, scaffold_format="yaml", project_root=None, params=NoParams()
        )
    )
    assert [pipeline.name for pipeline in load_defs_folder(tmp_path).pipelines] == ["churn_model"]


def test_two_pipelines_of_one_name_in_somebody_elses_project_are_named_with_their_files(tmp_path: Path) -> None:
    defs = project(tmp_path)
    for folder in ("churn", "copy"):
        (defs / folder).mkdir()
        (defs / folder / "defs.yaml").write_text(f"type: {TYPE}\nattributes: {{name: churn}}\n")
    program = "import dagster as dg; dg.load_from_defs_folder(path_within_project=__import__('pathlib').Path.cwd())"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"2 pipelines are named 'churn' ({defs}/churn/defs.yaml and {defs}/copy/defs.yaml)" in loaded.stderr


def test_a_secret_in_a_pipeline_made_in_python_is_refused_when_it_is_built() -> None:
    pipeline = TrainingPipeline(name="churn", settings={"JENKINS_TOKEN": "11aa22bb33"})
    with pytest.raises(SettingsError, match="JENKINS_TOKEN is a secret"):
        pipeline.build_defs(dg.ComponentTree.for_test().load_context)
