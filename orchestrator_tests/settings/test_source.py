"""Settings: one list of names, read late, complained about all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from orchestrator.errors import SettingsError
from orchestrator.settings.example import env_example
from orchestrator.settings.groups import (
    GROUPS,
    JenkinsSettings,
    MachineSettings,
    MlflowSettings,
    ProjectSettings,
    QueueSettings,
    SshSettings,
    all_settings,
    is_secret,
)
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_tests.support.environment import COMPLETE


def test_every_missing_setting_is_named_in_one_error() -> None:
    with pytest.raises(SettingsError) as error:
        PipelineSettings.read(SettingsSource(pipeline="training", lookup=lambda _: None))
    for name in COMPLETE:
        assert f"{name} is not set" in str(error.value)
    assert ".env.example" in str(error.value)


def test_a_complete_environment_is_enough_and_the_rest_has_defaults() -> None:
    read = PipelineSettings.read(SettingsSource(lookup=COMPLETE.get))
    assert read.machine.instance_types == ("t3.medium",)
    assert read.ssh.user == "ubuntu"
    assert read.ssh.port == 22
    assert read.project.entry_point == "main"
    assert read.project.max_minutes == 720
    assert read.machine.deployment, "defaults to the host name"
    assert read.machine.ready_when == "status-checks"


def test_an_empty_variable_counts_as_unset() -> None:
    read = SettingsSource(lookup={**COMPLETE, "INSTANCE_TYPE": "", "SUBNET_ID": ""}.get).read(MachineSettings)
    assert read.instance_types == ("t3.medium",)
    assert read.subnets == ()


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", "\t"])
def test_blanks_around_a_value_are_not_part_of_it(blank: str) -> None:
    read = SettingsSource(lookup={**COMPLETE, "JENKINS_USER": f"{blank}ci{blank}"}.get).read(JenkinsSettings)
    assert read.user == "ci"


def test_comma_lists_and_json_objects_are_read_as_such() -> None:
    environment = {
        **COMPLETE,
        "INSTANCE_TYPE": "g5.xlarge, g4dn.xlarge",
        "INSTANCE_MARKET": "spot,on-demand",
        "MLPROJECT_PARAMETERS": json.dumps({"alpha": 0.5, "name": 'a "quoted" $(word)', "flag": True}),
    }
    settings = SettingsSource(lookup=environment.get)
    machine = settings.read(MachineSettings)
    assert machine.instance_types == ("g5.xlarge", "g4dn.xlarge")
    assert machine.market == ("spot", "on-demand")
    assert settings.read(ProjectSettings).parameters == {
        "alpha": "0.5",
        "name": 'a "quoted" $(word)',
        "flag": "true",
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SSH_PORT", "ssh", "SSH_PORT='ssh' is wrong"),
        ("INSTANCE_MARKET", "cheap", "'cheap' is neither spot nor on-demand"),
        ("MLPROJECT_PARAMETERS", "alpha=1", "is not JSON"),
        ("MLPROJECT_PARAMETERS", "[1]", "is not a JSON object"),
        ("READY_WHEN", "soon", "READY_WHEN='soon' is wrong"),
        ("MAX_TRAINING_MINUTES", "0", "MAX_TRAINING_MINUTES='0' is wrong"),
        ("MLPROJECT_ENV_MANAGER", "poetry", "MLPROJECT_ENV_MANAGER='poetry' is wrong"),
        ("INSTANCE_TYPE", ",", "INSTANCE_TYPE=',' is wrong: it names nothing"),
        ("INSTANCE_MARKET", ", ,", "INSTANCE_MARKET=', ,' is wrong: it names nothing"),
        ("MAX_TRAINING_MINUTES", "inf", "MAX_TRAINING_MINUTES='inf' is wrong: Input should be a finite number"),
        ("MAX_TRAINING_MINUTES", "nan", "MAX_TRAINING_MINUTES='nan' is wrong: Input should be a finite number"),
        ("MAX_TRAINING_MINUTES", "1e12", "less than or equal to 525600"),
        ("READY_MINUTES", "inf", "READY_MINUTES='inf' is wrong: Input should be a finite number"),
        ("READY_MINUTES", "1e12", "less than or equal to 525600"),
        ("MLFLOW_PATIENCE_MINUTES", "inf", "MLFLOW_PATIENCE_MINUTES='inf' is wrong"),
        ("MLFLOW_PATIENCE_MINUTES", "1e12", "less than or equal to 525600"),
        ("INSTANCE_HOURLY_USD", "inf", "INSTANCE_HOURLY_USD='inf' is wrong: Input should be a finite number"),
        ("INSTANCE_HOURLY_USD", "1e300", "less than or equal to 10000"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wrong(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=name) as error:
        PipelineSettings.read(SettingsSource(lookup={**COMPLETE, name: value}.get))
    assert said in str(error.value)


def test_secrets_show_neither_in_settings_nor_in_errors() -> None:
    read = SettingsSource(lookup=COMPLETE.get).read(JenkinsSettings)
    assert COMPLETE["JENKINS_TOKEN"] not in f"{read!r} {read}"
    passphrase = {**COMPLETE, "KEY_PASSPHRASE": "open sesame"}
    assert "sesame" not in repr(SettingsSource(lookup=passphrase.get).read(SshSettings))


def test_a_pipeline_can_differ_from_the_environment() -> None:
    settings = SettingsSource(
        pipeline="churn",
        values={"JENKINS_JOB_NAME": "team/churn"},
        from_env={"JENKINS_TOKEN": "CHURN_TOKEN"},
        lookup={**COMPLETE, "CHURN_TOKEN": "other"}.get,
    )
    read = settings.read(JenkinsSettings)
    assert read.job == "team/churn"
    assert read.token.get_secret_value() == "other"


def test_a_missing_variable_is_named_as_the_pipeline_calls_it() -> None:
    settings = SettingsSource(
        pipeline="churn", from_env={"MLFLOW_EXPERIMENT_ID": "CHURN_EXPERIMENT"}, lookup=COMPLETE.get
    )
    with pytest.raises(SettingsError, match="CHURN_EXPERIMENT is not set"):
        settings.read(MlflowSettings)


def test_a_secret_in_a_committed_file_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"JENKINS_TOKEN is a secret.*settings_from_env"):
        SettingsSource(pipeline="churn", values={"JENKINS_TOKEN": "11aa22bb33"})


def test_a_password_in_an_address_in_a_committed_file_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_URI holds a password") as refused:
        SettingsSource(pipeline="churn", values={"MLFLOW_TRACKING_URI": "https://bob:hunter22@mlflow.example.com"})
    assert "hunter22" not in str(refused.value)
    SettingsSource(pipeline="churn", values={"MLPROJECT_URI": "ssh://git@example.com:2222/team/churn.git"})
    addresses = '{"endpoint": "http://feast:6566", "owner": "ml@example.com"}'
    SettingsSource(pipeline="churn", values={"MLPROJECT_PARAMETERS": addresses})


@pytest.mark.parametrize("name", ["MAX_INSTANCES", "JANITOR_DRY_RUN"])
def test_a_setting_of_the_whole_installation_is_refused_in_one_pipelines_file(name: str) -> None:
    said = rf"defs.yaml of pipeline 'churn': {name} .*belongs into the environment.*holds for all pipelines"
    with pytest.raises(SettingsError, match=said):
        SettingsSource(pipeline="churn", values={name: "1"})
    with pytest.raises(SettingsError, match=said):
        SettingsSource(pipeline="churn", from_env={name: "CHURN_VARIABLE"})
    assert SettingsSource(lookup={"MAX_INSTANCES": "3"}.get).read(QueueSettings).max_instances == 3


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="did you mean INSTANCE_TYPE"):
        SettingsSource(pipeline="churn", values={"INSTANCE_TIPE": "g5.xlarge"})


def test_a_secret_is_known_by_its_type_not_by_what_the_type_is_called() -> None:
    class NoSecretStr(BaseModel): ...

    cases: tuple[tuple[Any, bool], ...] = (
        (SecretStr, True),
        (SecretStr | None, True),
        (Annotated[SecretStr | None, "with a note"], True),
        (str | None, False),
        (NoSecretStr | None, False),
    )
    for annotation, secret in cases:
        assert is_secret(FieldInfo(annotation=annotation)) is secret
    assert {name for name, info in all_settings().items() if is_secret(info)} == {
        "JENKINS_TOKEN",
        "KEY_PASSPHRASE",
        "METRICS_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "UI_TOKEN",
        "DAGSTER_POSTGRES_URL",
        "OIDC_CLIENT_SECRET",
        "CELERY_BROKER_URL",
        "CELERY_RESULT_BACKEND",
        "FLOWER_URL",
        "MLFLOW_TRACKING_PASSWORD_ON_INSTANCE",
        "MLFLOW_TRACKING_TOKEN_ON_INSTANCE",
        "PRIVATE_INDEX_PASSWORD",
    }


def test_each_setting_is_declared_once() -> None:
    names = [name for group in GROUPS for name in group.names()]
    assert len(names) == len(set(names)) == len(all_settings())


def test_the_example_file_lists_every_setting_as_it_is_declared() -> None:
    committed = Path(__file__).parents[2] / ".env.example"
    assert committed.read_text() == env_example(), "run: python -m orchestrator.settings.example > .env.example"
