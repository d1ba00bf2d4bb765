"""What a run is going to do is decided, and found to be impossible, before any money is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.errors import SettingsError
from orchestrator.pipeline.training.command import mlflow_run_command
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.environment import secrets_in, training_environment
from orchestrator.pipeline.training.plan import Plan, make_plan
from orchestrator.remote.job import job_file
from orchestrator.remote.masking import Masker
from orchestrator.resources.jenkins.answers import Build
from orchestrator.settings.source import PipelineSettings, Settings
from orchestrator_tests.support.environment import COMPLETE

TOKEN = "not-to-be-shown"
ENVIRONMENT = {**COMPLETE, "JENKINS_JOB_NAME": "team/iris"}
BUILD = Build(
    number=7,
    timestamp=1_700_000_000_000,
    result="SUCCESS",
    job="team/iris",
    duration_ms=1000,
    url="https://jenkins.example.com/job/team/job/iris/7/",
    commit="c0ffee" * 6 + "c0ff",
    branch="main",
    repository="https://github.com/team/iris.git",
)


def settings(**changed: str) -> Settings:
    return Settings(pipeline="iris", lookup={**ENVIRONMENT, **changed}.get)


def plan(config: TrainingConfig | None = None, /, **changed: str) -> Plan:
    read = PipelineSettings.read(settings(**changed))
    return make_plan(pipeline="iris", partition="7", build=BUILD, settings=read, config=config or TrainingConfig())


def environment(**changed: str) -> Mapping[str, str]:
    source = settings(**changed)
    return training_environment(PipelineSettings.read(source))


def shown(text: str, **changed: str) -> str:
    """What a reader of the log sees of this output."""
    source = settings(**changed)
    read = PipelineSettings.read(source)
    return Masker(secrets_in(training_environment(read), read)).mask(text)


# ---- what must not be shown


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI_ON_INSTANCE"])
@pytest.mark.parametrize("password", ["hunter2secret", "hunter%32%73ecret", "p%40ss%2fword"])
def test_the_password_in_mlflows_address_is_masked(name: str, password: str) -> None:
    uri = f"https://trainer:{password}@mlflow.example.com:5000/base"
    decoded = password.replace("%32", "2").replace("%73", "s").replace("%40", "@").replace("%2f", "/")
    for written in (password, decoded):
        text = shown(f"View run at: https://trainer:{written}@mlflow.example.com:5000/base/#/runs/1", **{name: uri})
        assert written not in text
        assert "https://trainer:****@mlflow.example.com:5000/base/#/runs/1" in text


def test_both_addresses_of_mlflow_may_hold_a_password_of_their_own() -> None:
    said = shown(
        "outside 0uter inside 1nner",
        MLFLOW_TRACKING_URI="https://trainer:0uter@mlflow.example.com",
        MLFLOW_TRACKING_URI_ON_INSTANCE="http://trainer:1nner@10.0.0.7:5000",
    )
    assert said == "outside **** inside ****"


@pytest.mark.parametrize(
    "uri", ["http://[fe80::1", "http://mlflow:5000/a@b", "databricks", "http://trainer@mlflow:5000"]
)
def test_an_address_without_a_password_masks_nothing(uri: str) -> None:
    assert shown(f"View run at: {uri}/#/runs/1", MLFLOW_TRACKING_URI_ON_INSTANCE=uri) == f"View run at: {uri}/#/runs/1"


def test_what_training_env_hands_over_is_masked_and_so_is_a_password_inside_it() -> None:
    proxy = "http://proxy-user:open-sesame@proxy:3128"
    said = shown(f"{proxy} open-sesame", TRAINING_ENV="HTTPS_PROXY", HTTPS_PROXY=proxy)
    assert said == "**** ****"


@pytest.mark.parametrize(
    "uri",
    [
        f"https://{TOKEN}@github.com/team/iris.git",
        f"https://x-access-token:{TOKEN}@github.com/team/iris.git#training",
        f"HTTP://ci:{TOKEN}@git.example.com:8080/iris",
        f" https://{TOKEN}@github.com/team/iris.git",
    ],
)
def test_a_login_in_the_projects_address_is_refused_without_being_shown(uri: str) -> None:
    with pytest.raises(SettingsError, match=r"MLPROJECT_URI.*\.netrc.*AMI_ID.*GIT_CONFIG_.*TRAINING_ENV") as error:
        plan(MLPROJECT_URI=uri)
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "git@github.com:team/iris.git#training",
        "ssh://git@github.com/team/iris.git",
        "https://github.com/team/iris.git",
        "https://git.example.com/~me@team/iris.git#a@b",
        "git://git.example.com/iris",
    ],
)
def test_an_address_of_the_project_that_holds_no_secret_is_taken_as_it_is(uri: str) -> None:
    assert plan(MLPROJECT_URI=uri).project_uri == uri


# ---- what no program could be given


@pytest.mark.parametrize("name", ["MY-VAR", "1ST", "A=B", "A B", "A=$(id)"])
def test_a_name_that_no_variable_can_have_is_refused_before_the_launch(name: str) -> None:
    with pytest.raises(SettingsError) as error:
        environment(**{"TRAINING_ENV": f"PATH,{name}", "PATH": "/bin", name: "value"})
    assert f"TRAINING_ENV names {name!r}" in str(error.value)


def test_a_value_that_no_variable_can_have_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError, match="API_KEY") as error:
        environment(TRAINING_ENV="API_KEY", API_KEY=f"{TOKEN}\0")
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "config", "named"),
    [
        ({"MLPROJECT_PARAMETERS": r'{"alpha": "0.5\u0000"}'}, {}, "parameter alpha"),
        ({"MLPROJECT_PARAMETERS": r'{"alpha": "\ud800"}'}, {}, "parameter alpha"),
        ({"MLPROJECT_PARAMETERS": r'{"al\u0000pha": "1"}'}, {}, "parameter al"),
        ({"MLPROJECT_DOCKER_ARGS": r'{"gpus": "\u0000"}'}, {}, "MLPROJECT_DOCKER_ARGS"),
        ({"MLPROJECT_URI": "https://github.com/x\0"}, {}, "MLPROJECT_URI"),
        ({"MLPROJECT_ENTRY_POINT": "main\0"}, {}, "entry point"),
        ({"MLFLOW_COMMAND": "mlflow\0"}, {}, "MLFLOW_COMMAND"),
        ({"MLFLOW_EXPERIMENT_ID": "7\0"}, {}, "MLFLOW_EXPERIMENT_ID"),
        ({}, {"parameters": {"alpha": "\0"}}, "parameter alpha"),
        ({}, {"entry_point": "\0"}, "entry point"),
        ({}, {"version": "main\0"}, "version"),
    ],
)
def test_a_text_that_no_program_can_be_given_is_refused_before_the_launch(
    changed: dict[str, str], config: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=f"{named}.* NUL"):
        plan(TrainingConfig(**config), **changed)


texts = st.text(st.characters() | st.sampled_from("\0=@#'\ud800"), max_size=6)


@hypothesis_settings(deadline=None)
@given(parameters=st.dictionaries(texts, texts, max_size=2), entry_point=texts, version=texts, training_env=texts)
def test_whatever_is_planned_can_be_sent(
    parameters: dict[str, str], entry_point: str, version: str, training_env: str
) -> None:
    config = TrainingConfig(parameters=parameters, entry_point=entry_point, version=version)
    changed = {"TRAINING_ENV": training_env, **{name.strip(): "value" for name in training_env.split(",")}}
    try:
        planned, variables = plan(config, **changed), environment(**changed)
    except SettingsError:
        return
    command = mlflow_run_command(planned, PipelineSettings.read(settings(**changed)), mlflow_run="1")
    assert job_file(command, variables).endswith(b"\n")


# ---- the launchpad


@pytest.mark.parametrize("minutes", [0, -1, math.inf, math.nan, 1e12])
def test_the_launchpads_deadline_is_bounded_like_the_setting(minutes: float) -> None:
    with pytest.raises(ValidationError, match="max_minutes"):
        TrainingConfig(max_minutes=minutes)


def test_the_launchpads_deadline_replaces_the_setting() -> None:
    assert plan().max_minutes == 720
    assert plan(TrainingConfig(max_minutes=5)).max_minutes == 5
