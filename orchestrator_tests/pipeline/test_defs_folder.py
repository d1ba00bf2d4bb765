"""A folder of pipelines: one bad file costs one pipeline, which says what is wrong with it, by file and line."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from orchestrator.definitions import shared
from orchestrator.errors import SettingsError
from orchestrator.pipeline import check_defs
from orchestrator.pipeline.defs_folder import OWN_DEFS, folder_of_pipelines, load_defs_folder

TYPE = "type: orchestrator.pipeline.component.TrainingPipeline\n"


def write(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defs.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder of pipelines with a good one in it."""
    write(tmp_path / "iris", TYPE)
    return tmp_path


BROKEN: dict[str, tuple[str | bytes, int, str]] = {
    "a YAML syntax error": (TYPE + "attributes:\n  settings: {SSH_PORT: 22\n", 4, "cannot be read as YAML"),
    "a tab": (TYPE + "attributes:\n\tname: churn\n", 3, "cannot be read as YAML"),
    "an unknown setting": (TYPE + "attributes:\n  settings:\n    INSTANCE_TYP: a\n", 4, "did you mean INSTANCE_TYPE"),
    "a wrong value": (TYPE + "attributes:\n  settings:\n    READY_MINUTES: soon\n", 4, "READY_MINUTES='soon' is wrong"),
    "a secret": (TYPE + "attributes:\n  settings:\n    JENKINS_TOKEN: 11aa22\n", 4, "JENKINS_TOKEN is a secret"),
    "an unknown attribute": (TYPE + "attributes:\n  setings: {}\n", 3, "there is no 'setings' here"),
    "an unknown key": (TYPE + "atributes: {}\n", 2, "there is no 'atributes' here"),
    "settings that are none": (TYPE + "attributes:\n  settings: 3\n", 3, "settings is wrong"),
    "a name that cannot be one": (TYPE + "attributes:\n  name: 7up\n", 3, "cannot be a pipeline's name"),
    "a wrong class": ("\n" + TYPE.strip() + "s\n", 2, "there is no component type"),
    "a wrong module": ("type: orchestrato.TrainingPipeline\n", 1, "there is no component type"),
    "a short type": ("type: TrainingPipeline\n", 1, "there is no component type"),
    "a type that is no component": ("type: pathlib.Path\n", 1, "there is no component type"),
    "no type": ("attributes: {}\n", 1, "'type' is missing"),
    "an empty file": ("", 1, "is empty"),
    "comments only": ("# later\n", 1, "is empty"),
    "an empty second document": (TYPE + "---\n", 2, "is empty"),
    "a list": ("- type: churn\n", 1, "holds no `type:`"),
    "another encoding": (TYPE.encode() + b"attributes: {name: caf\xe9}\n", 1, "it is not UTF-8"),
    "two documents of one name": (f"{TYPE}---\n{TYPE}", 1, "2 pipelines are named 'churn'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pipeline_says_file_line_and_fault_and_the_others_go_on(good: Path, kind: str) -> None:
    text, line, sentence = BROKEN[kind]
    file = write(good / "churn", text) / "defs.yaml"
    loaded = load_defs_folder(good)
    assert [pipeline.name for pipeline in loaded.pipelines] == ["iris"]
    [broken] = loaded.broken
    assert broken.fault.startswith(f"{file}:{line}: ")
    assert sentence in broken.fault
    assert "11aa22" not in broken.fault
    assert_red(loaded.definitions, dg.AssetKey(["churn", "configuration"]), broken.fault)


def assert_red(definitions: dg.Definitions, key: dg.AssetKey, fault: str) -> None:
    """Whether the asset is in the UI, with a check that fails and says why."""
    repository = dg.Definitions.merge(definitions, shared()).get_repository_def()
    node = repository.asset_graph.get(key)
    assert fault in (node.description or "")
    assert node.group_name == "__".join(key.path[:-1]).replace("-", "_")
    job = repository.get_implicit_global_asset_job_def()
    [check] = [check for check in repository.asset_graph.asset_check_keys if check.asset_key == key]
    result = job.get_subset(asset_selection=set(), asset_check_selection={check}).execute_in_process(
        raise_on_error=False
    )
    [evaluation] = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.description == fault


def test_a_folder_without_defs_yaml_is_shown(good: Path) -> None:
    (good / "churn" / "experiments").mkdir(parents=True)
    (good / "churn" / "experiments" / "wide.yaml").write_text("parameters: {}\n")
    [broken] = load_defs_folder(good).broken
    assert broken.fault == f"{good / 'churn'}:1: this folder holds no defs.yaml; add one, or remove it"


def test_a_defs_yaml_that_cannot_be_read_is_shown(good: Path) -> None:
    (good / "churn" / "defs.yaml").mkdir(parents=True)
    [broken] = load_defs_folder(good).broken
    assert broken.fault.startswith(f"{good / 'churn' / 'defs.yaml'}:1: cannot be read: ")


def test_of_two_pipelines_with_one_name_neither_is_guessed(good: Path) -> None:
    write(good / "first", TYPE + "attributes: {name: churn}\n")
    write(good / "second", TYPE + "attributes:\n  name: churn\n")
    loaded = load_defs_folder(good)
    assert [pipeline.name for pipeline in loaded.pipelines] == ["iris"]
    said = (
        f"2 pipelines are named 'churn' ({good}/first/defs.yaml and {good}/second/defs.yaml); give each a `name` of its"
    )
    assert [broken.fault for broken in loaded.broken] == [
        f"{good}/first/defs.yaml:2: {said} own under `attributes`",
        f"{good}/second/defs.yaml:3: {said} own under `attributes`",
    ]


@pytest.mark.parametrize("attributes", ["", "attributes:\n", "attributes: {}\n"])
def test_a_type_alone_is_a_pipeline(good: Path, attributes: str) -> None:
    write(good / "churn", TYPE + attributes)
    assert {pipeline.name for pipeline in load_defs_folder(good).pipelines} == {"iris", "churn"}


def test_the_janitor_gets_the_names_that_a_broken_pipelines_machines_may_carry(good: Path) -> None:
    write(good / "churn-v2", TYPE + "attributes: {name: churn, settings: {INSTANCE_TYP: a}\n")
    write(good / "fraud", TYPE + "attributes: {x: 1}\n")
    watched = load_defs_folder(good).watched
    assert watched.broken == {"churn-v2", "churn", "fraud"}
    assert [settings.pipeline for settings in watched.settings] == ["iris"]


def test_strange_names_of_broken_folders_do_not_collide(good: Path) -> None:
    folders = ["my churn", "my_churn", "churn-model", "churn_model", "churn.model", "chürn"]
    for folder in folders:
        write(good / folder, "")
    loaded = load_defs_folder(good)
    assert len(loaded.broken) == len(folders)
    repository = dg.Definitions.merge(loaded.definitions, shared()).get_repository_def()
    repository.get_implicit_global_asset_job_def()  # resolves the checks' ops, whose names must differ, too
    keys = {key.path[0] for key in repository.asset_graph.get_all_asset_keys() if key.path[-1] == "configuration"}
    assert len(keys) == len(folders)
    assert {"my_churn", "churn-model", "churn_model", "churn.model"} <= keys


def test_nested_folders_are_isolated_from_each_other(good: Path) -> None:
    write(good / "team" / "fraud", TYPE)
    write(good / "team" / "churn", TYPE + "attributes: {x: 1}\n")
    loaded = load_defs_folder(good)
    assert {pipeline.name for pipeline in loaded.pipelines} == {"iris", "fraud"}
    assert_red(loaded.definitions, dg.AssetKey(["team", "churn", "configuration"]), loaded.broken[0].fault)


def test_python_files_beside_pipelines_load_or_say_where_they_fail(good: Path) -> None:
    (good / "assets.py").write_text("import dagster as dg\n\n@dg.asset\ndef report() -> None: ...\n")
    (good / "given.py").write_text("import dagster as dg\n\ndefs = dg.Definitions(assets=[dg.AssetSpec('given')])\n")
    (good / "broken.py").write_text("import dagster as dg\n\n1 / 0\n")
    (good / "syntax.py").write_text("x = 1\ndef (\n")
    loaded = load_defs_folder(good)
    keys = {
        asset.key.to_user_string()
        for asset in loaded.definitions.assets or []
        if isinstance(asset, (dg.AssetSpec, dg.AssetsDefinition))
    }
    assert {"report", "given"} <= keys
    assert [broken.fault.partition(": ")[0] for broken in loaded.broken] == [
        f"{good}/broken.py:3",
        f"{good}/syntax.py:2",
    ]


def test_a_pipelines_own_component_type_stands_beside_it(good: Path) -> None:
    write(good / "churn", "type: .special.Special\n")
    (good / "churn" / "special.py").write_text(
        "from orchestrator.pipeline.component import TrainingPipeline\n\nclass Special(TrainingPipeline): ...\n"
    )
    loaded = load_defs_folder(good)
    assert not loaded.broken
    assert {type(pipeline).__name__ for pipeline in loaded.pipelines} == {"TrainingPipeline", "Special"}


def test_a_folder_that_is_one_pipeline_is_loaded_as_that(good: Path) -> None:
    assert [pipeline.name for pipeline in load_defs_folder(good / "iris").pipelines] == ["iris"]


def test_the_folder_is_the_packages_own_unless_orchestrator_defs_names_another(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCHESTRATOR_DEFS", raising=False)
    assert folder_of_pipelines() == OWN_DEFS
    monkeypatch.setenv("ORCHESTRATOR_DEFS", str(good))
    assert folder_of_pipelines() == good
    with pytest.raises(SettingsError, match=r"there is no folder .*nowhere .*ORCHESTRATOR_DEFS"):
        load_defs_folder(good / "nowhere")


def test_the_check_names_every_fault_and_fails(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_defs.main([str(good)]) == 0
    write(good / "churn", TYPE + "attributes:\n  settings:\n    INSTANCE_TYP: a\n    READY_MINUTES: soon\n")
    write(good / "fraud", "")
    assert check_defs.main([str(good)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in said] == [
        f"{good}/churn/defs.yaml:4",
        f"{good}/churn/defs.yaml:5",
        f"{good}/fraud/defs.yaml:1",
    ]
    assert check_defs.main([str(good / "nowhere")]) == 1


def test_the_pipelines_of_this_repository_have_no_fault() -> None:
    assert check_defs.main([str(OWN_DEFS)]) == 0


def test_pipelines_that_would_undo_each_other_s_champion_are_named(good: Path) -> None:
    for name, way in (("a", "accuracy, goal: maximize"), ("b", "rmse, goal: minimize"), ("c", "rmse, goal: minimize")):
        model = "other" if name == "c" else "churn"
        write(good / name, f"{TYPE}attributes:\n  champion: {{metric: {way}, model: {model}}}\n")
    loaded = load_defs_folder(good)
    assert [pipeline.name for pipeline in loaded.pipelines] == ["c", "iris"]
    for name, broken in zip("ab", loaded.broken, strict=True):
        assert broken.fault.startswith(f"{good / name}/defs.yaml:3: pipelines a and b choose the champion of one")


def test_pipelines_may_share_a_registered_model_when_they_agree_on_what_is_better(good: Path) -> None:
    for name in ("a", "b"):
        write(good / name, f"{TYPE}attributes:\n  champion: {{metric: rmse, goal: minimize, model: churn}}\n")
    assert [pipeline.name for pipeline in load_defs_folder(good).pipelines] == ["a", "b", "iris"]
