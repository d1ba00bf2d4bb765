"""What the demo shows, on a terminal and without one."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from orchestrator.resources.jenkins.answers import Build
from orchestrator_sandbox.dagster_runs import RunStep, RunSummary
from orchestrator_sandbox.demo.display import DemoState, LineView, LiveView, picture, view_on
from orchestrator_sandbox.demo.outcome import DemoOutcome

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAINING = RunSummary(
    pipeline="training",
    id="5f6d0f7e-0000-0000-0000-000000000000",
    status="STARTED",
    job="training_training",
    partition="7",
    started=1.0,
    ended=None,
    steps=(
        RunStep(name="resolve", status="SUCCESS", started=1.0, seconds=0.2),
        RunStep(name="provision", status="SUCCESS", started=2.0, seconds=2.5),
        RunStep(name="train", status="IN_PROGRESS", started=4.0, seconds=None),
    ),
)
DONE = dataclasses.replace(TRAINING, status="SUCCESS", ended=9.0)
OUTCOME = DemoOutcome(
    pipeline="training",
    partition="7",
    commit=COMMIT,
    trained_commit=COMMIT,
    dagster_run_id=TRAINING.id,
    dagster_status="SUCCESS",
    mlflow_run_id="feed",
    mlflow_status="FINISHED",
    metrics={"accuracy": 0.9667, "system/cpu_utilization_percentage": 3.0},
    package="1.0.0+g0123456789ab",
    instance_id="i-1",
    instance_state="terminated",
    minutes=1.5,
    usd=0.00104,
    champion={"model": "digits", "version": "3", "build": "7"},
    deployment={"target": "directory /d/in-use/digits", "version": "3", "commit": COMMIT},
    urls={"mlflow_run": "http://127.0.0.1:5000/#/experiments/1/runs/feed"},
)


def build(number: int, result: str | None) -> Build:
    return Build(
        number=number,
        timestamp=0,
        result=result,
        job="digits",
        duration_ms=1,
        url="",
        commit=COMMIT if result else None,
    )


def scene(*, run: RunSummary = TRAINING, output: tuple[str, ...] = (), outcome: DemoOutcome | None = None) -> DemoState:
    builds = (build(8, None), build(7, "SUCCESS"), build(6, "FAILURE"))
    return DemoState("training", builds, trainings={"7": run.status}, run=run, output=output, outcome=outcome)


def drawn(shown: DemoState, *, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=80, height=height)
    with console.capture() as captured:
        console.print(picture(shown, height=height))
    return captured.get().splitlines()


def test_the_picture_has_the_builds_the_steps_and_the_end_of_the_output() -> None:
    lines = drawn(scene(output=tuple(f"epoch {n}" for n in range(100))))
    text = "\n".join(lines)
    assert "● training" in text
    assert "#8  ........  building" in text
    assert "#6  01234567  FAILURE   not trained" in text
    assert "provision  SUCCESS      2.5 s" in text
    assert "epoch 99" in text
    assert "epoch 1 " not in text


@pytest.mark.parametrize("height", [24, 40, 60])
def test_the_picture_never_needs_more_lines_than_there_are(height: int) -> None:
    assert len(drawn(scene(output=("x" * 300,) * 100), height=height)) <= height


def test_markup_in_the_output_of_a_training_is_not_obeyed() -> None:
    assert any("[bold]loss[/]" in line for line in drawn(scene(output=("[bold]loss[/]",))))


def test_on_a_terminal_a_result_is_written_once_and_stays() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=30)
    with view_on(console) as view:
        assert isinstance(view, LiveView)
        for _ in range(3):
            view.show(dataclasses.replace(scene(run=DONE, outcome=OUTCOME), hints=("try this",)))
    assert file.getvalue().count("a trained model") == 1
    assert file.getvalue().count("try this") == 1
    assert "0.9667" in file.getvalue()


def test_addresses_and_commands_can_be_copied_whole_from_a_narrow_terminal() -> None:
    file = io.StringIO()
    command = "git commit --allow-empty --message 'Learn faster' && git push"
    with view_on(Console(file=file, force_terminal=True, width=40, height=30)) as view:
        view.show(dataclasses.replace(scene(run=DONE, outcome=OUTCOME), hints=(command,)))
    assert command in file.getvalue()
    assert OUTCOME.urls
    for url in OUTCOME.urls.values():
        assert url in file.getvalue()


def test_without_a_terminal_each_piece_of_news_is_one_line() -> None:
    file = io.StringIO()
    with view_on(Console(file=file, width=40)) as view:
        assert isinstance(view, LineView)
        view.show(scene(output=("epoch 1", "epoch 2")))
        view.show(scene(output=("epoch 2", "epoch 3", "epoch 3")))
        view.show(scene(output=("epoch 3", "epoch 3")))
        view.show(scene(run=DONE, output=("epoch 3", "epoch 3"), outcome=OUTCOME))
    assert file.getvalue().splitlines() == [
        "training",
        "Jenkins: build 6 of 01234567 is FAILURE",
        "Jenkins: build 7 of 01234567 is SUCCESS",
        "Jenkins: build 8 is building",
        "Dagster: run 5f6d0f7e, step resolve: SUCCESS in 0.2 s",
        "Dagster: run 5f6d0f7e, step provision: SUCCESS in 2.5 s",
        "Dagster: run 5f6d0f7e, step train: IN_PROGRESS",
        "  | epoch 1",
        "  | epoch 2",
        "  | epoch 3",
        "  | epoch 3",
        f"build: 7 of commit {COMMIT}",
        f"Dagster run: {TRAINING.id} SUCCESS",
        "MLflow run: feed FINISHED",
        "metrics: accuracy 0.9667",
        "package: digits 1.0.0+g0123456789ab, installed from the private index",
        "instance: i-1 terminated, 1.5 minutes, 0.0010 USD",
        "best model: version 3 of the registered model digits, of build 7",
        "in use: version 3 in directory /d/in-use/digits",
        "mlflow run: http://127.0.0.1:5000/#/experiments/1/runs/feed",
    ]


def test_a_trained_model_has_no_fault() -> None:
    assert OUTCOME.faults() == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"dagster_status": "FAILURE", "failure": "it broke"}, f"the Dagster run {TRAINING.id} is FAILURE (it broke)"),
        ({"mlflow_status": "RUNNING"}, "the MLflow run feed is RUNNING"),
        ({"metrics": {}}, "MLflow holds no metrics"),
        ({"instance_state": "running"}, "the instance i-1 is running"),
        ({"trained_commit": "beef"}, f"Jenkins built {COMMIT}, but beef was trained"),
        ({"package": "1.0.0+gbeef"}, f"commit {COMMIT} was trained with the package of another: 1.0.0+gbeef"),
        ({"dagster_run_id": None}, "no Dagster run was launched"),
    ],
)
def test_whatever_is_missing_from_a_trained_model_is_a_fault(wrong: dict[str, object], fault: str) -> None:
    assert dataclasses.replace(OUTCOME, **wrong).faults() == [fault]  # type: ignore[arg-type]


def test_of_a_demo_that_trained_nothing_the_json_says_so_with_the_same_keys() -> None:
    nothing = DemoOutcome(pipeline="training").to_json()
    assert set(nothing) == set(OUTCOME.to_json())
    assert nothing["dagster_run_id"] is None
    assert nothing["metrics"] == {}
