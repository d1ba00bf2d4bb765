"""Trainings that make MLflow runs of their own, with a real `mlflow run`: found, tagged, chosen from, ended."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from orchestrator.errors import TrainingFailed, TrainingTimedOut
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.finished import FinishedTraining
from orchestrator.resources.mlflow import Run
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.attempts import ThisRun, World, provisioned, trained_metrics

SCRIPTS = {
    # One start_run per trial: the first one gets the run that MLFLOW_RUN_ID names.
    "trials": """
        for trial in range(3):
            with mlflow.start_run(run_name=f"t{trial}"):
                mlflow.log_metric("acc", trial / 10)
        """,
    "two": """
        with mlflow.start_run():
            mlflow.log_param("depth", 3)
        with mlflow.start_run(run_name="evaluation"):
            mlflow.log_metric("acc", 0.9)
        """,
    "nested": """
        with mlflow.start_run():
            for trial in range(3):
                with mlflow.start_run(run_name=f"t{trial}", nested=True):
                    mlflow.log_metric("loss", abs(trial - 1))
            mlflow.log_metric("loss", 7)
        """,
    "autolog": """
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from sklearn.tree import DecisionTreeClassifier
        # One trial is recorded: MLflow's server, on SQLite, refuses one of two who log the same dataset at once.
        mlflow.sklearn.autolog(log_datasets=False, max_tuning_runs=1)
        GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2).fit(*load_iris(return_X_y=True))
        """,
    # Steps are made by `mlflow.run`, which knows nothing of our mark: they name their parent.
    "steps": """
        with mlflow.start_run():
            for step in ("prepare", "fit"):
                mlflow.run(".", step, env_manager="local")
        """,
    "prepare": """
        with mlflow.start_run():
            mlflow.log_param("rows", 3)
        """,
    "fit": """
        with mlflow.start_run():
            mlflow.log_metric("acc", 0.8)
            with mlflow.start_run(run_name="fold", nested=True):
                mlflow.log_metric("acc", 0.7)
        """,
    "nothing": "print('it calls no MLflow')",
    "leaves": """
        from mlflow.tracking import MlflowClient
        with mlflow.start_run() as run:
            mlflow.log_metric("acc", 1)
            MlflowClient().create_run(run.info.experiment_id, tags={"mlflow.parentRunId": run.info.run_id})
        """,
    "open": """
        import sys, time
        from mlflow.tracking import MlflowClient
        with mlflow.start_run() as run:
            with mlflow.start_run(run_name="trial", nested=True) as trial:
                # As mlflow.run makes them, and what those make.
                step = MlflowClient().create_run(
                    run.info.experiment_id, tags={"mlflow.parentRunId": trial.info.run_id}, run_name="step"
                )
                print("all are open", flush=True)
                if sys.argv[1:]:
                    import os; os._exit(3)
                time.sleep(600)
        """,
    "set_experiment": """
        mlflow.set_experiment("of the script's own")
        with mlflow.start_run():
            mlflow.log_metric("acc", 1)
        """,
}

MLPROJECT = (
    "name: many\nentry_points:\n"
    + "".join(f"  {name}: {{command: 'python {name}.py'}}\n" for name in SCRIPTS)
    + "  crash: {command: 'python open.py crash'}\n"
)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitRemote]:
    source = tmp_path_factory.mktemp("many") / "source"
    source.mkdir()
    (source / "MLproject").write_text(MLPROJECT)
    for name, text in SCRIPTS.items():
        (source / f"{name}.py").write_text("import mlflow\n" + textwrap.dedent(text))
    with GitRemote(source.parent / "git", source) as git:
        yield git


def settings(git: GitRemote, entry_point: str, how: str = "") -> dict[str, str]:
    return {"MLPROJECT_URI": git.url, "MLPROJECT_ENTRY_POINT": entry_point, "MODEL_RUN": how}


def train(world: World, git: GitRemote, number: int, entry_point: str, how: str = "") -> FinishedTraining:
    attempt = world.attempt(
        number,
        run=ThisRun(f"run-{number}"),
        build=world.build(number, commit=git.head()),
        settings=settings(git, entry_point, how),
    )
    provisioned(attempt)
    attempt.train()
    attempt.terminate()
    finished = attempt.finished()
    attempt.close()
    runs = [finished.root, *(world.mlflow.run(run.id) for run in finished.others)]
    assert len(runs) == len({run.id for run in runs})
    for run in runs:
        assert run.status == "FINISHED"
        assert run.tags["orchestrator.partition"] == str(number)
        assert run.tags["jenkins.build"] == str(number)
        assert run.tags["dagster_run_id"] == f"run-{number}"
        assert run.tags["ec2.instance_id"] == finished.root.tags["ec2.instance_id"]
        assert run.tags.get("orchestrator.training") == (None if run is finished.root else finished.root.id)
    assert finished.usage is not None
    return finished


def names(runs: object) -> list[str]:
    assert isinstance(runs, list | tuple)
    return [run.name for run in runs]


@pytest.mark.services
def test_trials_made_one_after_the_other_are_all_known_and_the_best_is_the_model(world: World, many: GitRemote) -> None:
    finished = train(world, many, 801, "trials", "best:acc:max")
    assert names(finished.others) == ["t1", "t2"]
    assert (finished.run.name, trained_metrics(finished.run)) == ("t2", {"acc": 0.2})
    assert finished.reason.startswith("1 of 3 runs")
    again = world.attempt(801, run=ThisRun("run-801b", "run-801", trained_before=finished.root.id))
    assert again.finished().run.id == finished.root.id  # by default it is the training's own
    again.close()


@pytest.mark.services
def test_where_the_second_run_has_the_metrics_it_is_the_model(world: World, many: GitRemote) -> None:
    finished = train(world, many, 802, "two")
    assert (finished.run.name, trained_metrics(finished.run)) == ("evaluation", {"acc": 0.9})
    assert finished.root.params == {"depth": "3"}
    assert "the only other one that has" in finished.reason


@pytest.mark.services
def test_nested_runs_are_its_own(world: World, many: GitRemote) -> None:
    finished = train(world, many, 803, "nested")
    assert finished.run.id == finished.root.id
    assert names(finished.others) == ["t0", "t1", "t2"]


@pytest.mark.services
def test_what_autologging_makes_is_its_own_and_the_model_is_in_the_first_run(world: World, many: GitRemote) -> None:
    finished = train(world, many, 804, "autolog")
    assert finished.run.id == finished.root.id
    assert finished.root.has_model
    assert len(finished.others) == 1
    assert {run.tags["mlflow.parentRunId"] for run in finished.others} == {finished.root.id}


@pytest.mark.services
def test_of_a_project_with_several_steps_the_last_is_the_model(world: World, many: GitRemote) -> None:
    finished = train(world, many, 805, "steps")
    assert len(finished.others) == 3
    assert (finished.run.tags["mlflow.project.entryPoint"], trained_metrics(finished.run)) == ("fit", {"acc": 0.8})
    assert finished.reason.startswith("1 of 4 runs")


@pytest.mark.services
def test_a_script_that_calls_no_mlflow_is_green_and_one_run(world: World, many: GitRemote) -> None:
    finished = train(world, many, 806, "nothing")
    assert (finished.run.id, finished.run.latest, finished.others) == (finished.root.id, {}, [])


@pytest.mark.services
def test_a_run_that_a_green_training_left_open_is_ended_with_it(world: World, many: GitRemote) -> None:
    finished = train(world, many, 807, "leaves")
    [left] = finished.others
    assert left.tags["orchestrator.reason"] == "the training process exited 0 and left this run open"


def opened(world: World, number: int) -> dict[str, Run]:
    experiment = world.environment["MLFLOW_EXPERIMENT_ID"]
    of_build = world.mlflow.find_runs(experiment, tags={"jenkins.build": str(number)})
    [root] = [run for run in of_build if "orchestrator.training" not in run.tags]
    [trial] = world.mlflow.find_runs(experiment, tags={"orchestrator.training": root.id})
    [step] = world.mlflow.find_runs(experiment, tags={"mlflow.parentRunId": trial.id})
    return {"root": root, "trial": trial, "step": step}


@pytest.mark.services
@pytest.mark.parametrize(
    ("number", "entry_point", "status"), [(811, "open", "KILLED"), (812, "crash", "FAILED"), (813, "open", "FAILED")]
)
def test_runs_of_a_cancelled_failed_or_late_training_end_with_it(
    world: World, many: GitRemote, number: int, entry_point: str, status: str
) -> None:
    output: list[str] = []

    def write(text: str) -> None:
        output.append(text)
        if number == 811 and "all are open" in "".join(output):
            raise KeyboardInterrupt

    attempt = world.attempt(
        number,
        run=ThisRun(f"run-{number}"),
        build=world.build(number, commit=many.head()),
        settings=settings(many, entry_point),
        config=TrainingConfig(max_minutes=0.6) if number == 813 else None,
        write=write,
    )
    provisioned(attempt)
    with pytest.raises((KeyboardInterrupt, TrainingFailed, TrainingTimedOut)):
        attempt.train()
    attempt.close()
    assert "all are open" in "".join(output)
    assert {name: run.status for name, run in opened(world, number).items()} == dict.fromkeys(
        ("root", "trial", "step"), status
    )


@pytest.mark.services
def test_a_script_that_chooses_another_experiment_is_told_how_to_do_that_here(world: World, many: GitRemote) -> None:
    attempt = world.attempt(
        821,
        run=ThisRun("run-821"),
        build=world.build(821, commit=many.head()),
        settings=settings(many, "set_experiment"),
    )
    provisioned(attempt)
    with pytest.raises(TrainingFailed, match=r"set MLFLOW_EXPERIMENT_ID to that experiment's ID, or take set_exp"):
        attempt.train()
    attempt.close()
