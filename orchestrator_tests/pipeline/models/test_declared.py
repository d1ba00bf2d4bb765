"""What a defs.yaml may say under `checks` and `champion`, and the sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from orchestrator.definitions import shared
from orchestrator.errors import SettingsError
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.defs_folder import load_defs_folder
from orchestrator.pipeline.models.declared import ChampionBlock, Goal, MetricCheck, Tolerance, model_rules

TYPE = "orchestrator.pipeline.component.TrainingPipeline"
CHAMPION = "champion: {metric: accuracy, goal: maximize}"


def fault(tmp_path: Path, attributes: str) -> str:
    """Why these attributes cannot be used, in one line."""
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "defs.yaml").write_text(f"type: {TYPE}\nattributes:\n  {attributes}\n")
    [broken] = load_defs_folder(tmp_path).broken
    assert "\n" not in broken.fault
    return broken.fault


def test_the_example_of_the_design_is_read(tmp_path: Path) -> None:
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "defs.yaml").write_text(
        f"type: {TYPE}\n"
        "attributes:\n"
        "  checks:\n"
        "    accuracy: {min: 0.9}\n"
        "    rmse: {max: 3.2, worse_than_champion_by_at_most: 5%}\n"
        "    val/f1: {worse_than_champion_by_at_most: 1e-3, goal: maximize}\n"
        "  champion: {metric: accuracy, goal: maximize, model: churn}\n"
    )
    loaded = load_defs_folder(tmp_path)
    assert not loaded.broken
    rules = loaded.pipelines[0].model_rules()
    assert [(rule.name, rule.metric, rule.goal) for rule in rules.metrics] == [
        ("accuracy", "accuracy", Goal.MAXIMIZE),
        ("rmse", "rmse", Goal.MINIMIZE),
        ("val_f1", "val/f1", Goal.MAXIMIZE),
    ]
    assert rules.champion is not None
    assert (rules.champion.model, rules.champion.metric, rules.champion.goal) == ("churn", "accuracy", Goal.MAXIMIZE)
    assets = [asset for asset in loaded.definitions.assets or [] if isinstance(asset, dg.AssetsDefinition)]
    specs = {spec.name: spec.blocking for asset in assets for spec in asset.check_specs}
    assert specs == {"logged_something": False, "accuracy": True, "rmse": True, "val_f1": True, "loadable_model": True}


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (f"checks: {{accuracy: {{worse_than_champion_by_at_most: 5%}}}}\n  {CHAMPION.replace('accuracy', 'f1')}",
         "whether more of accuracy is better cannot be known from its check; write `goal: maximize` or"),
        (f"checks: {{accuracy: {{min: 0, max: 1, worse_than_champion_by_at_most: 5%}}}}\n"
         f"  {CHAMPION.replace('accuracy', 'f1')}", "cannot be known from its check"),
        ("champion: {metric: accuracy}", "champion: whether more of accuracy is better cannot be known"),
        ("checks: {accuracy: {min: 0.9, worse_than_champion_by_at_most: 5%}}", "there is none; add a block `champion:"),
        (f"checks: {{accuracy: {{max: 0.9}}}}\n  {CHAMPION}", "goal of accuracy is minimize, but maximize"),
        ("checks: {accuracy: {mini: 0.9}}", "there is no 'mini' here"),
        ("checks: {accuracy: {}}", "asks for nothing"),
        ("checks: {accuracy: 0.9}", "accuracy is wrong"),
        ("checks: [accuracy]", "checks is wrong"),
        ("checks: {accuracy: {min: high}}", "'high' is no number"),
        ("checks: {accuracy: {min: yes}}", "True is no number"),
        ("checks: {accuracy: {min: .nan}}", "nan is no bound"),
        ("checks: {accuracy: {min: .inf}}", "inf is no bound"),
        ("checks: {accuracy: {min: 2, max: 1}}", "no value passes this check: min 2 is above max 1"),
        ("checks: {accuracy: {goal: up, min: 1}}", "goal is wrong"),
        ("checks: {accuracy: {goal: maximize, max: 1}}", "`max` says minimize, and `goal` says maximize"),
        ("checks: {accuracy: {goal: minimize, min: 1}}", "`min` says maximize, and `goal` says minimize"),
        ('champion: {metric: a, goal: maximize, model: "churn\\n"}', "cannot be a registered model's name"),
        (f"checks: {{accuracy: {{worse_than_champion_by_at_most: -5%}}}}\n  {CHAMPION}", "write 0 or more"),
        (f"checks: {{accuracy: {{worse_than_champion_by_at_most: a bit}}}}\n  {CHAMPION}", "neither a share"),
        ("checks: {'': {min: 1}}", "no name of a metric"),
        ("checks: {a/b: {min: 1}, a.b: {min: 1}}", "a/b and a.b would be one check a_b"),
        ("champion: {goal: maximize}", "'metric' is missing"),
        ("champion: {metric: a, goal: maximize, modell: x}", "there is no 'modell' here"),
        ("champion: {metric: a, goal: maximize, model: team/churn}", "cannot be a registered model's name"),
        ("champion: {metric: a, goal: maximize, model: \"it's\"}", "cannot be a registered model's name"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_sentence(tmp_path: Path, attributes: str, sentence: str) -> None:
    assert sentence in fault(tmp_path, attributes)


def test_the_direction_comes_from_the_bound_or_the_goal_or_the_champion() -> None:
    def goal_of(champion: ChampionBlock, **check: object) -> Goal | None:
        given = MetricCheck.model_validate({"worse_than_champion_by_at_most": "5%", **check})
        return model_rules("churn", {"accuracy": given}, champion).metrics[0].goal

    other = ChampionBlock(metric="f1", goal=Goal.MINIMIZE)
    assert goal_of(other, min=1) == Goal.MAXIMIZE
    assert goal_of(other, max=1) == Goal.MINIMIZE
    assert goal_of(other, min=0, max=1, goal="minimize") == Goal.MINIMIZE
    assert goal_of(ChampionBlock(metric="accuracy", goal=Goal.MINIMIZE)) == Goal.MINIMIZE


def test_the_champions_goal_may_come_from_its_check() -> None:
    checks = {"rmse": MetricCheck.model_validate({"max": 3})}
    rule = model_rules("churn", checks, ChampionBlock(metric="rmse")).champion
    assert rule is not None
    assert (rule.goal, rule.model) == (Goal.MINIMIZE, "churn")
    with pytest.raises(SettingsError):
        model_rules("churn", checks, ChampionBlock(metric="mae"))


@pytest.mark.parametrize(
    ("text", "champion", "goal", "bound"),
    [
        ("5%", 0.8, Goal.MAXIMIZE, 0.76),
        ("5%", -0.8, Goal.MAXIMIZE, -0.84),
        ("5 %", -2.0, Goal.MINIMIZE, -1.9),
        ("0.05", 0.8, Goal.MAXIMIZE, 0.75),
        (0.5, 3.0, Goal.MINIMIZE, 3.5),
        ("5%", 0.0, Goal.MINIMIZE, 0.0),
        (0, 0.8, Goal.MAXIMIZE, 0.8),
    ],
)
def test_a_tolerance_is_of_the_champions_absolute_value(
    text: object, champion: float, goal: Goal, bound: float
) -> None:
    assert Tolerance.parse(text).bound(champion, goal) == pytest.approx(bound)


def test_a_pipeline_that_asks_for_nothing_gets_nothing() -> None:
    pipeline = TrainingPipeline(name="churn")
    assert not pipeline.model_rules().any


def test_a_metric_may_have_any_name() -> None:
    metrics = ["result", "if", "1st", "ä", "__x__", "val/acc@1", "logged_something", "after", "x" * 500]
    checks = {metric: MetricCheck.model_validate({"min": 1}) for metric in metrics}
    built = TrainingPipeline(name="churn", checks=checks).build_defs(dg.ComponentTree.for_test().load_context)
    job = dg.Definitions.merge(built, shared()).resolve_job_def("churn_training")
    found = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
    expected = {"result", "if", "1st", "_", "__x__", "val_acc_1", "logged_something_value", "after", "x" * 200}
    assert found == {*expected, "logged_something", "loadable_model"}
