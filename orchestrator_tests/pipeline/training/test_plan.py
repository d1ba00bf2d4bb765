"""What a run is going to do is decided, and found to be impossible, before any money is spent."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.errors import SettingsError
from orchestrator.pipeline.training.command import mlflow_run_command
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.environment import (
    RUN_CONTEXT,
    secrets_in,
    training_environment,
    with_run_tags,
)
from orchestrator.pipeline.training.plan import Plan, make_plan
from orchestrator.remote.job import job_file
from orchestrator.remote.masking import Masker
from orchestrator.remote.reserved import reserved
from orchestrator.resources.jenkins.answers import Build
from orchestrator.settings.groups import ModelChoice
from orchestrator.settings.source import PipelineSettings, SettingsSource
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


def settings(**changed: str) -> SettingsSource:
    return SettingsSource(pipeline="iris", lookup={**ENVIRONMENT, **changed}.get)


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


SECRET = {
    "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "DB_PASSWORD": "correct horse battery",
    "PGPASSWORD": "271828182",
    "HF_TOKEN": "hf_plain",
    "NEPTUNE": "eyJhcGlfYWRkcmVzcyI6Imh0dHBzOi8vYXBwIn0x9QwErTy12",
    "WANDB": "0f3ad1b2c4e59f7788aa90bbcc12de34f5a6b7c8",
    "SLACK": "https://hooks.slack.com/services/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",
    "SIGNING_KEY": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END PRIVATE KEY-----",
    "GOOGLE_CREDENTIALS": '{"type": "service_account", "client_email": "train@acme.example"}',
}


@pytest.mark.parametrize("name", SECRET)
def test_what_looks_secret_in_training_env_is_masked(name: str) -> None:
    value = SECRET[name]
    assert shown(f"it is {value}.", TRAINING_ENV=name, **{name: value}) == "it is ****."
    assert shown(f"it is {value}.", TRAINING_ENV=f"PLAIN={name}", **{name: value}) == "it is ****."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("USE_API_KEY", "true"),
        ("MAX_NEW_TOKENS", "128000"),
        ("MLFLOW_EXPERIMENT_ID", "123456789012345678"),
        ("HOME", "/home/ubuntu"),
        ("KEY_PATH", "/home/ubuntu/.ssh/id_ed25519"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "~/keys/gcp.json"),
        ("PYTHONPATH", "..:/opt/shared/python3.11"),
        ("SECRETS_REGION", "eu-west-3"),
        ("GIT_CONFIG_VALUE_0", "https://github.com/"),
        ("MLFLOW_S3_ENDPOINT_URL", "http://minio.example.com:9000"),
        ("BUCKET", "s3://acme-training-data-2024-eu-west-3/churn/v2"),
        ("KEY_COLUMN", "customer"),
        ("MODEL", "bert-base-uncased-finetuned-2024"),
    ],
)
def test_what_is_no_secret_stays_readable(name: str, value: str) -> None:
    assert shown(f"it is {value}.", TRAINING_ENV=name, **{name: value}) == f"it is {value}."


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("HTTPS_PROXY", "http://proxy-user:open-sesame@proxy:3128", "http://proxy-user:****@proxy:3128"),
        ("DATABASE_URL", "postgres://churn:p%40ss!word@db/churn", "postgres://churn:****@db/churn"),
        (
            "GIT_CONFIG_KEY_0",
            "url.https://ghp_16C7e42F292c6912E7710c838347Ae17@github.com/.insteadOf",
            "url.https://****@github.com/.insteadOf",
        ),
        ("ODBC", "host=db user=churn password=hush-hush dbname=x", "host=db user=churn password=**** dbname=x"),
        ("EXTRA_HEADER", "X-Auth: Bearer abcdefgh", "X-Auth: Bearer ****"),
    ],
)
def test_of_an_address_or_a_text_with_a_login_only_the_login_is_masked(name: str, value: str, seen: str) -> None:
    assert shown(value, TRAINING_ENV=name, **{name: value}) == seen


def test_mlflows_own_credentials_are_masked_whatever_they_look_like() -> None:
    said = shown("it is 1234", MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD="1234")
    assert said == "it is ****"


PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nBAQEFAASCBKcwgg==\n-----END PRIVATE KEY-----\n"
SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "acme-churn",
    "private_key": PEM,
    "client_email": "train@acme.iam.example.com",
    "pin": 482913,
    "nested": [{"pw": "correct horse"}],
}


def test_a_value_with_a_line_end_is_masked_without_it() -> None:
    assert shown("it is hunter22.", TRAINING_ENV="MY_TOKEN", MY_TOKEN="hunter22\n") == "it is ****."
    assert shown("it is hunter22.", TRAINING_ENV="MY_TOKEN", MY_TOKEN="\r\n hunter22 ") == "it is ****."


@pytest.mark.parametrize("prefix", ["", "  ", "> ", "2026-01-01 INFO "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("value", [PEM, PEM.replace("\n", "\r\n"), PEM.strip().replace("\n", "\\n"), f"\n{PEM}\n"])
def test_each_line_of_a_secret_of_several_lines_is_masked(value: str, end: str, prefix: str) -> None:
    text = end.join(f"{prefix}{line}" for line in PEM.splitlines())
    masked = shown(text, TRAINING_ENV="SIGNING_KEY", SIGNING_KEY=value)
    assert "MII" not in masked
    assert "BAQ" not in masked
    assert masked.count("****") in (1, 4)


@pytest.mark.parametrize("name", ["GOOGLE_CREDENTIALS", "CONFIG"])
@pytest.mark.parametrize("indent", [None, 2])
def test_of_a_secret_in_json_the_texts_within_are_masked_too(name: str, indent: int | None) -> None:
    value = json.dumps(SERVICE_ACCOUNT, indent=indent)
    for secret in (PEM, PEM.splitlines()[1], json.dumps(PEM), "482913"):
        assert "****" in shown(f"it is {secret}", TRAINING_ENV=name, **{name: value})
    for plain in ("service_account", "acme-churn is a project"):
        assert shown(plain, TRAINING_ENV=name, **{name: value}) == plain


def test_whatever_stands_in_a_secret_of_json_under_a_key_that_says_nothing_is_masked() -> None:
    value = json.dumps(SERVICE_ACCOUNT)
    assert shown("it is correct horse", TRAINING_ENV="MY_SECRET", MY_SECRET=value) == "it is ****"


def test_what_secret_env_names_is_masked_whatever_it_looks_like() -> None:
    given = {"TRAINING_ENV": "HOUSE,COLOUR=TINT,DEBUG", "HOUSE": "gryffindor", "TINT": "/blue", "DEBUG": "true"}
    text = "gryffindor in /blue, true, elsewhere"
    assert shown(text, **given) == text
    assert shown(text, SECRET_ENV="HOUSE, COLOUR,DEBUG", **given) == "**** in ****, true, elsewhere"
    assert shown(text, SECRET_ENV="TINT", **given) == "gryffindor in ****, true, elsewhere"
    assert shown(text, SECRET_ENV="ELSE", ELSE="elsewhere", **given) == "gryffindor in /blue, true, ****"


def test_secret_env_must_name_what_there_is() -> None:
    with pytest.raises(SettingsError, match="SECRET_ENV names TYPO, which neither"):
        environment(SECRET_ENV="TYPO")


@pytest.mark.parametrize("password", ["1234", "hunter2hunter2"])
def test_mlflows_login_is_masked_in_a_header(password: str) -> None:
    header = base64.b64encode(f"me:{password}".encode()).decode()
    text = shown(f"Basic {header}", MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD=password)
    assert text == "Basic ****"


# ---- what the training does not get

OWN = {"JENKINS_TOKEN": "jenkins-0wn-t0ken", "KEY_PASSPHRASE": "open sesame", "UI_TOKEN": "u" * 32}
OWN |= {
    "DAGSTER_POSTGRES_URL": "postgresql://dagster:pg-passw0rd@db/dagster",
    "CELERY_BROKER_URL": "redis://:r3dis@q/0",
}
OWN |= {"ORCHESTRATOR_DEPLOYMENT": "prod", "DAGSTER_CLOUD_TOKEN": "x"}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("entry", ["{}", "X={}", "A=B,PATH={}"])
def test_the_orchestrators_own_secrets_are_refused_by_name(name: str, entry: str) -> None:
    with pytest.raises(SettingsError, match=f"TRAINING_ENV names .*{name}.* the orchestrator's own") as error:
        environment(**{"TRAINING_ENV": entry.format(name), "B": "b", **OWN})
    assert OWN[name] not in str(error.value)


@pytest.mark.parametrize("name", ["JENKINS_TOKEN", "KEY_PASSPHRASE", "UI_TOKEN", "DAGSTER_POSTGRES_URL"])
@pytest.mark.parametrize("copy", ["{}", " {}\n"])
def test_the_orchestrators_own_secrets_are_refused_by_value(name: str, copy: str) -> None:
    with pytest.raises(SettingsError, match=f"TRAINING_ENV names MINE, whose value holds .* own {name}") as error:
        environment(**{"TRAINING_ENV": "MINE", "MINE": copy.format(OWN[name]), **OWN})
    assert OWN[name] not in str(error.value)


def test_copies_within_other_values_are_refused_too(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END PRIVATE KEY-----\n")
    encoded = base64.b64encode(f"ci:{OWN['JENKINS_TOKEN']}".encode()).decode()
    for value, origin in (
        (f"https://ci:{OWN['JENKINS_TOKEN']}@jenkins", "JENKINS_TOKEN"),
        (f"Basic {encoded}", "JENKINS_TOKEN"),
        ("db=pg-passw0rd", "DAGSTER_POSTGRES_URL"),
        (key.read_text().replace("\n", "\r\n"), "KEY_PATH"),
    ):
        with pytest.raises(SettingsError, match=f"TRAINING_ENV names X=MINE, whose value holds .* own {origin}"):
            environment(**{"TRAINING_ENV": "X=MINE", **OWN, "MINE": value, "KEY_PATH": str(key)})


def test_a_token_of_the_pipelines_own_is_refused_where_it_comes_from() -> None:
    source = SettingsSource(
        pipeline="iris",
        from_env={"JENKINS_TOKEN": "IRIS_TOKEN"},
        lookup={**ENVIRONMENT, "TRAINING_ENV": "IRIS_TOKEN", "IRIS_TOKEN": "iris-0wn-t0ken"}.get,
    )
    with pytest.raises(SettingsError, match="own JENKINS_TOKEN"):
        training_environment(PipelineSettings.read(source))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "job",
            "directory",
            "status",
            "UID",
            "EUID",
            "PPID",
            "BASHOPTS",
            "SHELLOPTS",
            "BASH_ENV",
            "BASH_VERSINFO",
            "ENV",
        ),
        *(
            "IFS",
            "LD_PRELOAD",
            "PYTHONHOME",
            "MLFLOW_RUN_ID",
            "MLFLOW_EXPERIMENT_NAME",
            "ORCHESTRATOR_TRAINING",
            "OPTIND",
        ),
    ],
)
@pytest.mark.parametrize("entry", ["{}", "{}=SOURCE"])
def test_names_that_a_shell_or_we_go_by_are_refused(name: str, entry: str) -> None:
    with pytest.raises(SettingsError, match=f"TRAINING_ENV names {name}, which no training can be given"):
        environment(**{"TRAINING_ENV": entry.format(name), name: "1", "SOURCE": "1"})


@pytest.mark.parametrize("name", ["http_proxy", "no_proxy", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS"])
def test_names_that_trainings_need_are_not(name: str) -> None:
    assert environment(**{"TRAINING_ENV": f"{name}=SOURCE", "SOURCE": "1"})[name] == "1"


def test_every_variable_that_the_supervisor_assigns_is_refused() -> None:
    script = Path(str(resources.files("orchestrator.remote") / "supervisor.sh")).read_text()
    assigned = set(re.findall(r"^\s*(?:export |local )?([a-z_]+)=", script, flags=re.MULTILINE))
    assert len(assigned) > 10
    assert [name for name in assigned if reserved(name) is None] == []


# ---- what the training gets


OURS = {"MLFLOW_TRACKING_USERNAME": "us", "MLFLOW_TRACKING_PASSWORD": "our-own", "AWS_SECRET_ACCESS_KEY": "aws-own"}


@pytest.mark.parametrize("entry", ["AWS_SECRET_ACCESS_KEY", "KEY=AWS_SECRET_ACCESS_KEY", "COPY"])
def test_our_aws_keys_pass_with_a_warning_that_names_a_better_way(entry: str, caplog: pytest.LogCaptureFixture) -> None:
    environment(TRAINING_ENV=entry, AWS_SECRET_ACCESS_KEY="aws-own", COPY="aws-own")
    (warning,) = caplog.messages
    assert all(word in warning for word in ("AWS_SECRET_ACCESS_KEY", "INSTANCE_PROFILE"))
    assert "aws-own" not in warning


def test_our_login_at_mlflow_passes_with_one_warning_unless_there_is_another(caplog: pytest.LogCaptureFixture) -> None:
    given = environment(TRAINING_ENV="MLFLOW_TRACKING_PASSWORD,AWS_SECRET_ACCESS_KEY", **OURS)
    assert (given["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_PASSWORD"]) == ("us", "our-own")
    (warning,) = caplog.messages
    assert all(word in warning for word in ("MLFLOW_TRACKING_PASSWORD_ON_INSTANCE", "INSTANCE_PROFILE"))
    caplog.clear()
    theirs = {"MLFLOW_TRACKING_USERNAME_ON_INSTANCE": "they", "MLFLOW_TRACKING_PASSWORD_ON_INSTANCE": "their-own"}
    address = "https://us:our-own@mlflow.example.com/x"
    given = environment(TRAINING_ENV="MLFLOW_TRACKING_PASSWORD", MLFLOW_TRACKING_URI=address, **OURS, **theirs)
    assert (given["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_PASSWORD"]) == ("they", "their-own")
    assert given["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com/x"
    given = environment(MLFLOW_TRACKING_TOKEN_ON_INSTANCE="t0ken", **OURS)
    assert given["MLFLOW_TRACKING_TOKEN"] == "t0ken"
    assert "MLFLOW_TRACKING_PASSWORD" not in given
    assert caplog.messages == []


def test_what_the_instance_needs_prevails_over_what_training_env_repeats() -> None:
    given = environment(TRAINING_ENV="MLFLOW_TRACKING_URI", MLFLOW_TRACKING_URI_ON_INSTANCE="http://10.0.0.7:5000")
    assert given["MLFLOW_TRACKING_URI"] == "http://10.0.0.7:5000"


@pytest.mark.parametrize(
    ("changed", "workspace"),
    [
        ({"MLFLOW_WORKSPACE": "team-a"}, "team-a"),
        ({"MLFLOW_WORKSPACE": " team-a ", "TRAINING_ENV": "MLFLOW_WORKSPACE"}, "team-a"),
        ({"MLFLOW_WORKSPACE": "team-a", "OTHER": "team-b", "TRAINING_ENV": "MLFLOW_WORKSPACE=OTHER"}, "team-b"),
        ({}, None),
    ],
)
def test_the_training_works_in_the_workspace_of_its_experiment(changed: dict[str, str], workspace: str | None) -> None:
    assert environment(**changed).get("MLFLOW_WORKSPACE") == workspace


def test_the_experiment_and_the_region_reach_the_training_without_being_asked_for() -> None:
    given = environment(MLFLOW_EXPERIMENT_ID="12", AWS_DEFAULT_REGION="eu-west-3", AWS_REGION="")
    assert given["MLFLOW_EXPERIMENT_ID"] == "12"
    assert given["AWS_DEFAULT_REGION"] == "eu-west-3"
    assert "AWS_REGION" not in given


def test_training_env_is_resolved_as_the_pipelines_settings_are() -> None:
    source = SettingsSource(
        pipeline="iris",
        values={"MLFLOW_EXPERIMENT_ID": "7"},
        from_env={"JENKINS_USER": "IRIS_JENKINS_USER"},
        lookup={
            **ENVIRONMENT,
            "MLFLOW_EXPERIMENT_ID": "1",
            "TRAINING_ENV": "EXPERIMENT=MLFLOW_EXPERIMENT_ID, JENKINS_USER,DEPTH",
            "IRIS_JENKINS_USER": "iris-bot",
            "DEPTH": "3",
        }.get,
    )
    given = training_environment(PipelineSettings.read(source))
    assert (given["EXPERIMENT"], given["MLFLOW_EXPERIMENT_ID"]) == ("7", "7")
    assert (given["JENKINS_USER"], given["DEPTH"]) == ("iris-bot", "3")


def test_the_training_may_get_other_keys_than_ours() -> None:
    ours = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "our-secret", "PYTHONPATH": "/ours"}
    theirs = {"TRAIN_ID": "theirs", "TRAIN_SECRET": "their-secret", "TRAIN_PATH": ".."}
    wanted = "AWS_ACCESS_KEY_ID=TRAIN_ID, AWS_SECRET_ACCESS_KEY = TRAIN_SECRET,PYTHONPATH=TRAIN_PATH"
    given = environment(TRAINING_ENV=wanted, **ours, **theirs)
    assert [given[name] for name in ours] == list(theirs.values())
    assert not set(theirs) & set(given)


def test_a_source_that_is_not_set_is_named() -> None:
    with pytest.raises(SettingsError, match=r"TRAINING_ENV names TRAIN_ID, which neither"):
        environment(TRAINING_ENV="AWS_ACCESS_KEY_ID=TRAIN_ID", AWS_ACCESS_KEY_ID="ours")


@pytest.mark.parametrize("own", ["", '{"team": "churn", "mark": "theirs"}', "no JSON", "[1]"])
def test_runs_that_the_training_makes_get_our_tags_and_the_users(own: str) -> None:
    given = with_run_tags({RUN_CONTEXT: own, "A": "b"}, {"mark": "ours"})
    kept = {"team": "churn"} if own.startswith("{") else {}
    assert (json.loads(given[RUN_CONTEXT]), given["A"]) == ({**kept, "mark": "ours"}, "b")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("root", ModelChoice(kind="root")),
        (" last ", ModelChoice(kind="last")),
        ("best:val/accuracy:max", ModelChoice(kind="best", metric="val/accuracy", highest=True)),
        ("best:loss:total:min", ModelChoice(kind="best", metric="loss:total", highest=False)),
        ("", None),
    ],
)
def test_which_run_is_the_model_is_a_setting(text: str, choice: ModelChoice | None) -> None:
    assert PipelineSettings.read(settings(MODEL_RUN=text)).project.model_choice == choice
    assert choice is None or ModelChoice.parse(str(choice)) == choice


@pytest.mark.parametrize("text", ["best", "best:accuracy", "best::max", "best:accuracy:most", "first"])
def test_another_way_to_choose_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"MODEL_RUN='.*' is wrong: it is none of root, last, best:METRIC:max"):
        PipelineSettings.read(settings(MODEL_RUN=text))


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


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("MY-VAR", "MY-VAR"),
        ("1ST", "1ST"),
        ("A B", "A B"),
        ("A=$(id)", "$(id)"),
        ("A=B=C", "B=C"),
        ("A=", ""),
        ("=A", ""),
    ],
)
def test_a_name_that_no_variable_can_have_is_refused_before_the_launch(entry: str, name: str) -> None:
    with pytest.raises(SettingsError) as error:
        environment(**{"TRAINING_ENV": f"PATH,{entry}", "PATH": "/bin", name: "value"})
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


def test_the_launchpad_cannot_ask_for_more_time_than_the_setting_gives() -> None:
    assert plan(TrainingConfig(max_minutes=60), MAX_TRAINING_MINUTES="60").max_minutes == 60
    with pytest.raises(SettingsError, match=r"max_minutes 60\.5 is more than MAX_TRAINING_MINUTES=60"):
        plan(TrainingConfig(max_minutes=60.5), MAX_TRAINING_MINUTES="60")


@pytest.mark.parametrize(
    "instance_type", ["p4d.24xlarge", "u-24tb1.112xlarge", "", "T3.MEDIUM", "t3.medium,p4d.24xlarge"]
)
def test_the_launchpad_cannot_ask_for_any_machine(instance_type: str) -> None:
    with pytest.raises(SettingsError, match=r"\(t3\.medium, m5\.large\): .*INSTANCE_TYPES_ALLOWED"):
        plan(TrainingConfig(instance_type=instance_type), INSTANCE_TYPES_ALLOWED="m5.large")


def test_the_launchpad_may_ask_for_a_machine_of_the_settings() -> None:
    changed = {"INSTANCE_TYPE": "t3.medium,t3.large", "INSTANCE_TYPES_ALLOWED": "m5.large,t3.large"}
    for instance_type in (None, "t3.large", "m5.large"):
        assert plan(TrainingConfig(instance_type=instance_type), **changed).instance_type == instance_type


SHA = "1f2e3d4c5b6a79880716253443526170fedcba98"


@pytest.mark.parametrize("version", [SHA, SHA * 2 + "0" * 16, "main", "v1.2", "release/3", "bad", "feed-me", "2026x"])
def test_a_commit_a_tag_and_a_branch_are_versions(version: str) -> None:
    assert plan(TrainingConfig(version=version)).version == version


@pytest.mark.parametrize("version", ["-x", "--upload-pack=id", "a\nb", "\x1b[2J", "\u202emain"])
def test_a_version_that_is_an_option_or_cannot_be_printed_is_refused(version: str) -> None:
    with pytest.raises(SettingsError, match="Refused the version"):
        plan(TrainingConfig(version=version))


@pytest.mark.parametrize("version", [SHA[:4], SHA[:8], SHA[:12].upper(), SHA[:39]])
def test_a_shortened_commit_is_refused_with_the_command_that_prints_the_full_one(version: str) -> None:
    with pytest.raises(SettingsError, match=f"`git rev-parse {version}`"):
        plan(TrainingConfig(version=version))


@pytest.mark.parametrize("version", ["refs/heads/main", "origin/main", "remotes/origin/main"])
def test_a_name_that_only_a_clone_knows_is_refused(version: str) -> None:
    with pytest.raises(SettingsError, match="give the branch's"):
        plan(TrainingConfig(version=version))


@pytest.mark.parametrize("name", ["alpha", "a/b", "a.b-c_d", "lr:0", "two words", "größe"])
def test_a_name_that_mlflow_takes_is_a_parameters_name(name: str) -> None:
    assert name in plan(TrainingConfig(parameters={name: "1"})).parameters


@pytest.mark.parametrize("name", ["lr@1", "a//b", "/a", "../a", "a/", ".", "a=b", "", "x" * 251, "a\nb", "a$b"])
def test_a_name_that_mlflow_refuses_is_refused_before_the_launch(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a parameter's name"):
        plan(TrainingConfig(parameters={name: "1"}))
