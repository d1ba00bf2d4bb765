"""`orchestrator models`, `promote` and `rollback`, against a real MLflow server."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import orchestrator
from orchestrator.cli.program import run
from orchestrator.names import MlflowTag, VersionTag
from orchestrator.pipeline.models.champion import settle
from orchestrator.pipeline.models.registration import register_all
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.real_models import RealModels

pytestmark = pytest.mark.services  # a whole MLflow, and seconds each

TYPE = "orchestrator.pipeline.component.TrainingPipeline"


@dataclass
class Commands:
    """The command line, and a pipeline `churn` whose versions 1 to 3 have the accuracies 0.8, 0.9 and 0.7."""

    models: RealModels
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        status = run(orchestrator, words)
        shown = self.capsys.readouterr()
        return status, shown.out, shown.err

    def listed(self, *words: str) -> Sequence[Mapping[str, Any]]:
        status, out, err = self("models", *words, "--json")
        assert status == 0, err
        entries: list[Mapping[str, Any]] = json.loads(out)
        return entries

    def decide(self) -> str:
        """What a run of the champion's job would leave; the champion's version."""
        with client(self.models.server.url) as mlflow:
            champion = settle(mlflow.registry, mlflow, self.models.rule).champion
        return champion.version.version if champion else ""

    def train(self, accuracy: float, *, build: int) -> str:
        run_id = self.models.train(accuracy, build=build)
        with client(self.models.server.url) as mlflow:
            register_all(mlflow, self.models.rule, [run_id])
        return run_id


@pytest.fixture
def commands(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Commands:
    for name, value in {**mlflow_server.env(), "ORCHESTRATOR_DEFS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("orchestrator.cli.program.unwind_on_signals", lambda: None)
    models = RealModels.on(mlflow_server)
    champion = f"champion: {{metric: accuracy, goal: maximize, model: {models.rule.model}}}"
    for folder, attributes in {"churn": champion, "plain": "name: plain"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "defs.yaml").write_text(f"type: {TYPE}\nattributes:\n  {attributes}\n")
    commands = Commands(models, capsys)
    for build, accuracy in enumerate((0.8, 0.9, 0.7), start=1):
        commands.train(accuracy, build=build)
    assert commands.decide() == "2"
    return commands


def test_models_lists_all_versions(commands: Commands) -> None:
    entries = commands.listed()
    assert [entry["version"] for entry in entries] == ["3", "2", "1"]
    second = entries[1]
    assert {key: second[key] for key in ("model", "aliases", "metrics", "build", "commit", "checks")} == {
        "model": commands.models.rule.model,
        "aliases": ["champion"],
        "metrics": {"accuracy": 0.9},
        "build": "2",
        "commit": "c0ffee",
        "checks": "passed",
    }
    assert len(second["run_id"]) == 32
    assert commands.listed("churn") == entries
    status, out, _ = commands("models", "churn")
    assert status == 0
    assert f"{commands.models.rule.model} v2  [champion]  build 2  c0ffee  accuracy 0.9" in out


def test_a_promoted_version_stays_until_a_newer_build_beats_it(commands: Commands) -> None:
    status, out, err = commands("promote", "churn", "1", "--reason", "it  is\nfairer", "--json")
    assert status == 0, err
    (shown,) = json.loads(out)
    assert (shown["version"], shown["aliases"], shown["build"]) == ("1", ["champion"], "1")
    assert commands.decide() == "1"
    entries = commands.listed("churn")
    assert entries[2]["aliases"] == ["champion"]
    assert entries[2]["promoted"]["reason"] == "it is fairer"
    assert entries[2]["promoted"]["by"].startswith(f"{getpass.getuser()}@")
    commands.train(0.99, build=2)  # an old build, trained anew
    assert commands.decide() == "1"
    commands.train(0.81, build=9)
    assert commands.decide() == "5"


def test_rollback_leaves_the_champion_until_somebody_promotes_it(commands: Commands) -> None:
    status, out, _ = commands("rollback", "churn", "--reason", "it is slow")
    assert status == 0
    assert "version 1 of" in out
    assert commands.decide() == "1"
    rejected = commands.listed("churn")[1]
    assert (rejected["version"], rejected["remark"], rejected["rejected"]["reason"]) == ("2", "rejected", "it is slow")
    assert commands("promote", "churn", "v2", "--reason", "it is fast now")[0] == 0
    again = commands.listed("churn")[1]
    assert (again["aliases"], again["rejected"]) == (["champion"], None)


def test_rollback_from_what_was_promoted_is_back_to_the_best(commands: Commands) -> None:
    assert commands("promote", "churn", "3", "--reason", "try it")[0] == 0
    assert commands("rollback", "churn", "--reason", "no good")[0] == 0
    assert commands.decide() == "2"


def test_rollback_to_nothing_is_refused_and_changes_nothing(commands: Commands) -> None:
    for _ in range(2):
        assert commands("rollback", "churn", "--reason", "no good")[0] == 0
    before = commands.listed("churn")
    status, _, err = commands("rollback", "churn", "--reason", "no good")
    assert status == 1
    assert "version 3" in err
    assert "stays the champion, because no other may be it (version 2: rejected; version 1: rejected)" in err
    assert commands.listed("churn") == before


REFUSED = [
    (["promote", "churn", "9", "--reason", "x"], "has no version 9; `orchestrator models churn` lists"),
    (["promote", "churn", "../1", "--reason", "x"], "'../1' is no version"),
    (["promote", "churn", "1", "--reason", " "], "--reason is empty"),
    (["promote", "churn", "1"], "Missing option '--reason'"),
    (["promote", "other", "1", "--reason", "x"], "there is no pipeline 'other'; there are: churn, plain"),
    (["rollback", "plain", "--reason", "x"], "pipeline plain has no champion: write `champion:"),
    (["models", "plain"], "pipeline plain has no champion"),
]


def test_what_cannot_be_is_refused_in_one_sentence(commands: Commands) -> None:
    for words, sentence in REFUSED:
        status, _, err = commands(*words)
        assert status in (1, 2)
        assert sentence in err
        assert len(err.splitlines()) == 1


def test_tags_that_others_have_written_are_shown_as_they_are(commands: Commands) -> None:
    with client(commands.models.server.url) as mlflow:
        [first, *_] = mlflow.registry.versions(commands.models.rule.model)
        mlflow.registry.set_tags(
            first, {VersionTag.PROMOTED: "[", VersionTag.REJECTED: "7", MlflowTag.PARTITION: "\x1b[2J"}
        )
    entry = commands.listed("churn")[2]
    assert (entry["promoted"], entry["rejected"]) == ({"reason": "["}, {"reason": "7"})
    assert "\x1b" not in commands("models", "churn")[1]


def test_without_versions_there_is_nothing_to_roll_back_from(commands: Commands, tmp_path: Path) -> None:
    text = f"type: {TYPE}\nattributes:\n  champion: {{metric: accuracy, goal: maximize, model: nothing-yet}}\n"
    (tmp_path / "churn" / "defs.yaml").write_text(text)
    assert commands.listed("churn") == []
    status, _, err = commands("rollback", "churn", "--reason", "x")
    assert status == 1
    assert "nothing-yet has no champion to roll back from" in err
