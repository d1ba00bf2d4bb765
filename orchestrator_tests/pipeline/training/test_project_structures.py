"""Public projects come in a few structures. Small ones of each are trained, and what is recorded is looked at.

They are of our own making, after: the course that this project began with (JedhaBootcamp/sample-ml-workflow), MLflow's
examples sklearn_elasticnet_wine, multistep_workflow and hyperparam, and projects in the folders of a larger repository.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator

import pytest

from orchestrator.errors import TrainingFailed
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.finished import FinishedTraining
from orchestrator.pipeline.training.metadata import training_metadata
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.attempts import ThisRun, World, trained_metrics
from orchestrator_tests.support.containers import volumes

pytestmark = pytest.mark.services

PYTHON_IN_CONTAINER = sys.executable

COURSE = {
    "MLproject": "name: course\nentry_points: {main: {command: '"
    + PYTHON_IN_CONTAINER
    + " train.py'}}\ndocker_env: "
    + json.dumps(
        {
            "image": "tiny",
            "volumes": [*volumes(), f"{sys.prefix}:{sys.prefix}:ro"],
            "environment": [
                "MLFLOW_TRACKING_URI",
                "MLFLOW_EXPERIMENT_ID",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
            ],
        }
    )
    + "\n",
    # The image is built with all of the folder, and the script names the experiment that it was given.
    "train.py": """
        import os
        import mlflow
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from sklearn.tree import DecisionTreeClassifier
        mlflow.set_experiment(experiment_id=os.environ["MLFLOW_EXPERIMENT_ID"])
        mlflow.sklearn.autolog(log_models=False, log_datasets=False)
        with mlflow.start_run():
            search = GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2)
            search.fit(*load_iris(return_X_y=True))
            mlflow.log_metric("test_accuracy", 0.75)
            mlflow.log_param("key", os.environ["AWS_ACCESS_KEY_ID"])
        """,
}

PLAIN = {
    "MLproject": """
        name: wine
        python_env: python_env.yaml
        entry_points:
          main:
            parameters:
              alpha: {type: float, default: 0.5}
              l1_ratio: {type: float, default: 0.1}
            command: "python train.py {alpha} {l1_ratio}"
          knn:
            parameters:
              neighbours: int
            command: "python knn.py {neighbours}"
          silent: {command: "python silent.py"}
        """,
    "python_env.yaml": "dependencies: [mlflow]\n",
    "train.py": """
        import sys
        import mlflow
        alpha, l1_ratio = map(float, sys.argv[1:])
        with mlflow.start_run():
            mlflow.log_param("alpha", alpha)
            mlflow.log_param("l1_ratio", l1_ratio)
            mlflow.log_metric("rmse", 1 - alpha)
        """,
    "knn.py": """
        import sys
        import mlflow
        mlflow.log_metric("neighbours_used", int(sys.argv[1]))  # without start_run
        """,
    "silent.py": "print('trained, and told nobody')\n",
}

STEPS = {
    "MLproject": """
        name: steps
        entry_points:
          load: {command: "python step.py load"}
          fit:
            parameters:
              rows: int
              depth: {type: int, default: 2}
            command: "python step.py fit {rows} {depth}"
          broken: {command: "python step.py broken"}
          main:
            parameters:
              last: {type: string, default: fit}
            command: "python main.py {last}"
        """,
    # As MLflow's example: a parent run whose steps are runs of other entry points, one of them cached.
    "main.py": """
        import sys
        import mlflow
        from mlflow.tracking import MlflowClient
        def step(name, **parameters):
            done = mlflow.run(".", name, parameters=parameters, env_manager="local")
            return MlflowClient().get_run(done.run_id)
        with mlflow.start_run():
            loaded = step("load")
            rows = loaded.data.params["rows"]
            step(sys.argv[1], **({"rows": rows} if sys.argv[1] == "fit" else {}))
        """,
    "step.py": """
        import sys
        import mlflow
        with mlflow.start_run():
            if sys.argv[1] == "load":
                mlflow.log_param("rows", 7)
            elif sys.argv[1] == "fit":
                mlflow.log_metric("accuracy", int(sys.argv[2]) / 10)
            else:
                raise ValueError("the data is not what it was")
        """,
}

SEARCH = {
    "MLproject": """
        name: search
        entry_points:
          train:
            parameters:
              depth: int
            command: "python train.py {depth}"
          main:
            parameters:
              max_runs: {type: int, default: 2}
            command: "python search.py {max_runs}"
          by_program: {command: "python by_program.py"}
        """,
    # As MLflow's example: each trial is a run of its own, started with the ID of a run that was made for it.
    "search.py": """
        import sys
        import mlflow
        from mlflow.tracking import MlflowClient
        client = MlflowClient()
        with mlflow.start_run() as parent:
            def trial(depth):
                with mlflow.start_run(nested=True) as child:
                    mlflow.projects.run(
                        ".", "train", run_id=child.info.run_id, parameters={"depth": depth},
                        env_manager="local", synchronous=False,
                    ).wait()
                return client.get_run(child.info.run_id)
            trials = [trial(depth) for depth in range(int(sys.argv[1]))]
            best = max(trials, key=lambda run: run.data.metrics["accuracy"])
            mlflow.set_tag("best_run", best.info.run_id)
            mlflow.log_metric("accuracy", best.data.metrics["accuracy"])
        """,
    "by_program.py": """
        import os, subprocess
        import mlflow
        with mlflow.start_run() as parent:
            outside = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
            for depth in (1, 2):
                subprocess.run(
                    ["mlflow", "run", ".", "-e", "train", "-P", f"depth={depth}", "--env-manager", "local"],
                    env=outside, check=True,
                )
        """,
    "train.py": """
        import sys
        import mlflow
        with mlflow.start_run():
            mlflow.log_metric("accuracy", int(sys.argv[1]) / 10)
        """,
}

PROJECTS = {
    "course": COURSE,
    "plain": PLAIN,
    "steps": STEPS,
    "models/search": SEARCH,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitRemote]:
    source = tmp_path_factory.mktemp("structures") / "source"
    for folder, files in PROJECTS.items():
        (source / folder).mkdir(parents=True)
        for name, text in files.items():
            (source / folder / name).write_text(textwrap.dedent(text).lstrip("\n"))
    with GitRemote(source.parent / "git", source) as git:
        yield git


def attempt_at(world: World, git: GitRemote, number: int, folder: str, **settings: str) -> Attempt:
    return world.attempt(
        number,
        run=ThisRun(f"run-{number}"),
        build=world.build(number, commit=git.head()),
        settings={"MLPROJECT_URI": f"{git.url}#{folder}", **settings},
    )


def recorded(world: World, attempt: Attempt) -> FinishedTraining:
    attempt.train()
    attempt.terminate()
    finished = attempt.finished()
    attempt.close()
    for run in (finished.root, *(world.mlflow.run(run.id) for run in finished.others)):
        assert run.status == "FINISHED"
        assert run.tags["jenkins.build"] == str(attempt.plan.build.number)
    return finished


def course(world: World, git: GitRemote, engine: DockerEngine, number: int, **settings: str) -> Attempt:
    """With nothing but what the course's own variables are called, and where the sandbox's Docker is."""
    variables = {
        "DOCKER_HOST": engine.host,
        "MLPROJECT_ENV_MANAGER": "",
        "MLPROJECT_DOCKER_ARGS": '{"network": "host"}',
    }
    names = ",".join(filter(None, ["DOCKER_HOST", settings.pop("TRAINING_ENV", "")]))
    return attempt_at(world, git, number, "course", TRAINING_ENV=names, **variables, **settings)


def test_the_course_s_own_project_is_trained_with_the_variables_that_the_course_sets(
    world: World, repository: GitRemote, docker_engine: DockerEngine
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": world.environment["AWS_ACCESS_KEY_ID"]}
    attempt = course(world, repository, docker_engine, 901, TRAINING_ENV="AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY")
    finished = recorded(world, attempt)
    assert finished.run.id == finished.root.id
    assert finished.run.experiment_id == world.environment["MLFLOW_EXPERIMENT_ID"]
    assert finished.run.metrics["test_accuracy"] == 0.75
    assert finished.run.params["key"] == keys["AWS_ACCESS_KEY_ID"]
    assert len(finished.others) == 2  # the trials of GridSearchCV
    shown = training_metadata(finished, attempt.plan.build)
    assert shown["commit"].value == repository.head()


def test_the_course_s_own_project_says_which_variables_it_misses(
    world: World, repository: GitRemote, docker_engine: DockerEngine
) -> None:
    attempt = course(world, repository, docker_engine, 902)
    with pytest.raises(TrainingFailed, match=r"MLproject asks for AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        attempt.train()
    attempt.close()


def test_defaults_and_what_was_asked_for_are_recorded_as_the_script_read_them(
    world: World, repository: GitRemote
) -> None:
    finished = recorded(world, attempt_at(world, repository, 911, "plain", MLPROJECT_PARAMETERS='{"alpha": 0.42}'))
    assert trained_metrics(finished.run) == {"rmse": pytest.approx(0.58)}
    assert finished.run.params == {"alpha": "0.42", "l1_ratio": "0.1"}
    assert finished.reason == "the only run of this training"


def test_another_entry_point_that_starts_no_run_itself_fills_the_one_it_is_given(
    world: World, repository: GitRemote
) -> None:
    settings = {"MLPROJECT_ENTRY_POINT": "knn", "MLPROJECT_PARAMETERS": '{"neighbours": 5}'}
    finished = recorded(world, attempt_at(world, repository, 912, "plain", **settings))
    assert trained_metrics(finished.run) == {"neighbours_used": 5.0}
    assert finished.run.params == {"neighbours": "5"}
    assert not finished.others


def test_an_entry_point_that_tells_nobody_is_green_and_recorded_as_empty(world: World, repository: GitRemote) -> None:
    finished = recorded(world, attempt_at(world, repository, 913, "plain", MLPROJECT_ENTRY_POINT="silent"))
    assert (finished.run.metrics, finished.run.has_model, list(finished.others)) == ({}, False, [])


@pytest.mark.parametrize(
    ("number", "settings", "sentence"),
    [
        (914, {"MLPROJECT_ENTRY_POINT": "xgboost"}, "xgboost"),
        (915, {"MLPROJECT_ENTRY_POINT": "knn"}, "neighbours"),
        (916, {"MLPROJECT_URI": "URL#no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_the_project_does_not_have_is_named(
    world: World, repository: GitRemote, number: int, settings: dict[str, str], sentence: str
) -> None:
    settings = {name: value.replace("URL", repository.url) for name, value in settings.items()}
    attempt = attempt_at(world, repository, number, "plain", **settings)
    with pytest.raises(TrainingFailed, match=sentence):
        attempt.train()
    attempt.close()


def test_of_several_steps_the_one_with_the_metrics_is_the_model_and_all_are_its_own(
    world: World, repository: GitRemote
) -> None:
    finished = recorded(world, attempt_at(world, repository, 921, "steps"))
    assert len(finished.others) == 2
    assert finished.run.tags["mlflow.project.entryPoint"] == "fit"
    assert trained_metrics(finished.run) == {"accuracy": pytest.approx(0.7)}
    assert finished.run.params == {"rows": "7", "depth": "2"}
    assert finished.root.params == {"last": "fit"}
    assert finished.reason.startswith("1 of 3 runs")


def test_a_step_that_fails_makes_the_training_red_and_no_run_of_it_stays_open(
    world: World, repository: GitRemote
) -> None:
    attempt = attempt_at(world, repository, 922, "steps", MLPROJECT_PARAMETERS='{"last": "broken"}')
    with pytest.raises(TrainingFailed):
        attempt.train()
    attempt.close()
    runs = list(world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags={"dagster_run_id": "run-922"}))
    assert "FAILED" in {run.status for run in runs}
    assert "RUNNING" not in {run.status for run in runs}


def test_the_trials_of_a_search_that_starts_programs_in_a_folder_of_the_repository_are_its_own(
    world: World, repository: GitRemote
) -> None:
    settings = {"MODEL_RUN": "best:accuracy:max"}
    finished = recorded(world, attempt_at(world, repository, 931, "models/search", **settings))
    assert len(finished.others) == 2
    assert finished.root.params == {"max_runs": "2"}
    assert trained_metrics(finished.run) == {"accuracy": pytest.approx(0.1)}
    assert finished.reason.startswith("1 of 3 runs")


def test_trials_that_name_no_parent_are_not_known_and_the_training_counts_as_one_that_told_nobody(
    world: World, repository: GitRemote
) -> None:
    settings = {"MLPROJECT_ENTRY_POINT": "by_program", "MODEL_RUN": "last"}
    finished = recorded(world, attempt_at(world, repository, 932, "models/search", **settings))
    assert (list(finished.others), trained_metrics(finished.run)) == ([], {})
    assert finished.reason == "the only run of this training"
