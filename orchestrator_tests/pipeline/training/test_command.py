"""The arguments of `docker run` and what a container is given: unit tests, and any input that a user may write."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestrator.errors import SettingsError
from orchestrator.pipeline.training.command import docker_arguments, mlflow_run_command
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.environment import OF_THE_MACHINE, job_files, secrets_in, training_environment
from orchestrator.pipeline.training.plan import make_plan
from orchestrator.remote.job import Argument, JobFile
from orchestrator.resources.jenkins.answers import Build
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_tests.support.certificate import PEM
from orchestrator_tests.support.client_certificates import Authority
from orchestrator_tests.support.environment import COMPLETE

DIRECTORY = "/home/ubuntu/.orchestrator/1/"
NAMES = JobFile("docker.env", "API_KEY\n")
CA = JobFile("ca.pem", "PEM", variable="MLFLOW_TRACKING_SERVER_CERT_PATH")
BUILD = Build(
    number=7,
    timestamp=1,
    result="SUCCESS",
    job="team/iris",
    duration_ms=1,
    url="https://jenkins.example.com/7/",
    commit="c0ffee" * 6 + "c0ff",
    branch="main",
    repository="https://github.com/team/iris.git",
)


def read(**changed: str) -> PipelineSettings:
    lookup = {**COMPLETE, "JENKINS_JOB_NAME": "team/iris", **changed}.get
    return PipelineSettings.read(SettingsSource(pipeline="iris", lookup=lookup))


def as_text(argument: Argument) -> str:
    return argument if isinstance(argument, str) else DIRECTORY.join(argument.parts)


def docker_argv(arguments: Sequence[Argument]) -> list[str]:
    """What `docker run` gets: as MLflow 2 and 3 read and join them (`_user_args_to_dict`, `_get_docker_command`)."""
    words: dict[str, str | bool] = {}
    for argument in map(as_text, arguments):
        name, equals, value = argument.partition("=")
        assert name not in words, f"MLflow refuses a repeated {name!r}"
        words[name] = value if equals else True
    joined: list[str] = []
    for name, word in words.items():
        joined += [("-" if len(name) == 1 else "--") + name, *([] if word is True else [str(word)])]
    return shlex.split(" ".join(joined))


def argv(given: Mapping[str, str], *files: JobFile) -> list[str]:
    return docker_argv(docker_arguments(given, mlflow_run="1", files=files))


def given_as(text: str) -> Mapping[str, str]:
    return read(MLPROJECT_DOCKER_ARGS=text).project.docker_args


OURS = ["--label", "orchestrator.training=1", "--env-file", f"{DIRECTORY}docker.env"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", ["--init"]),
        ('{"init": true}', ["--init"]),
        ('{"init": ""}', ["--init"]),
        ('{"init": false}', []),
        ('{"gpus": "all", "read-only": true, "t": true}', ["--gpus", "all", "--read-only", "-t", "--init"]),
        ('{"privileged": false, "cpus": 2}', ["--cpus", "2", "--init"]),
        ('{"network=host": ""}', ["--network", "host", "--init"]),
        ('{"v": "$HOME/data:/data"}', ["-v", "$HOME/data:/data", "--init"]),
    ],
)
def test_true_is_a_flag_and_false_leaves_it_out(text: str, expected: list[str]) -> None:
    assert argv(given_as(text), NAMES) == OURS + expected


@pytest.mark.parametrize("text", ['{"label": "team=ml"}', '{"label=team": "ml"}'])
def test_a_label_of_the_user_s_own_stands_beside_ours(text: str) -> None:
    assert argv(given_as(text)) == [*OURS[:2], "--label", "team=ml", "--init"]


def test_an_env_file_of_the_user_s_own_comes_after_ours_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert argv({"env-file": "/etc/train.env"}, NAMES) == [*OURS, "--env-file", "/etc/train.env", "--init"]
    assert "MLPROJECT_DOCKER_ARGS has an env-file" in caplog.text


def test_mlflow_s_ca_is_at_the_same_place_in_the_container() -> None:
    mount = f"type=bind,source={DIRECTORY}ca.pem,target={DIRECTORY}ca.pem,readonly"
    assert argv({}, CA, NAMES)[4:6] == ["--mount", mount]
    assert argv({"mount": "type=tmpfs,target=/x"}, CA)[2:6] == ["--mount", mount, "--mount", "type=tmpfs,target=/x"]


words = st.text("abcdefgh-", min_size=1, max_size=4).filter(lambda word: not word.startswith("-"))
keys = words | st.sampled_from(["label", "env-file", "mount", "init", "l", "v", "label=a"])
values = words | st.sampled_from(["", "true", "false", "a=b", "--privileged"])


@given(given=st.dictionaries(keys, values, max_size=5), ca=st.booleans())
def test_whatever_a_user_gives_mlflow_takes_it_and_the_container_is_ours(given: dict[str, str], ca: bool) -> None:
    words = argv(given, *([CA] if ca else []), NAMES)
    pairs = list(itertools.pairwise(words))
    assert ("--label", "orchestrator.training=1") in pairs
    assert ("--env-file", f"{DIRECTORY}docker.env") in pairs
    for name, value in given.items():
        if "=" not in name and value not in ("", "true", "false"):
            assert (f"{'-' if len(name) == 1 else '--'}{name}", value) in pairs


# ---- what is beside the job


secrets = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=12)


@hypothesis_settings(deadline=None)
@given(names=st.lists(st.from_regex(r"\A[A-Z_][A-Z0-9_]{0,6}\Z"), unique=True, max_size=4), secret=secrets)
def test_no_value_is_in_the_command_or_on_the_disk(names: list[str], secret: str) -> None:
    secret = f"<{secret}>"
    chosen = {f"X_{name}": secret for name in names}
    settings = read(TRAINING_ENV=",".join(chosen), MLFLOW_TRACKING_PASSWORD=secret, **chosen)
    environment = training_environment(settings)
    files = job_files(environment, settings)
    plan = make_plan(pipeline="iris", partition="7", build=BUILD, settings=settings, config=TrainingConfig())
    command = mlflow_run_command(plan, settings, mlflow_run="1", files=files)
    assert not any(secret in as_text(argument) for argument in command)
    assert not any(secret in file.text for file in files)
    (listed,) = [file.text.splitlines() for file in files]
    assert {*chosen, "MLFLOW_TRACKING_PASSWORD", "PYTHONUNBUFFERED", "MLFLOW_TRACKING_URI"} <= set(listed)


@pytest.mark.parametrize("name", sorted(OF_THE_MACHINE))
def test_a_place_on_the_machine_is_no_place_in_a_container(name: str) -> None:
    settings = read(TRAINING_ENV=f"{name},API_KEY", API_KEY="1", **{name: "/somewhere"})
    environment = training_environment(settings)
    (names,) = job_files(environment, settings)
    assert environment[name] == "/somewhere"
    assert name not in names.text.splitlines()
    assert "API_KEY" in names.text.splitlines()


def test_mlflow_s_ca_goes_with_the_training_whether_training_env_names_it_or_not(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    text = f"# Ümläut & 'Söhne'\r\n{PEM}{PEM}"
    ca.write_text(text, newline="")
    for named in ("", "MLFLOW_TRACKING_SERVER_CERT_PATH"):
        settings = read(MLFLOW_TRACKING_SERVER_CERT_PATH=str(ca), TRAINING_ENV=named)
        environment = training_environment(settings)
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" not in environment, "it is not where it is here"
        file, names = job_files(environment, settings)
        assert (file.text.splitlines(), file.variable) == (text.splitlines(), "MLFLOW_TRACKING_SERVER_CERT_PATH")
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in names.text.splitlines()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"\0DER",
        b"",
        b"<html>404 Not Found</html>",
        PEM.replace("CERTIFICATE", "PRIVATE KEY").encode(),
        PEM.replace("MII", "***").encode(),
        PEM[:200].encode(),
        PEM.replace("MIIB", "AAAA").encode(),
        b"/etc/ssl/certs/ca.pem\n",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    ],
    ids=[
        "none",
        "DER",
        "empty",
        "a web page",
        "a key",
        "no base64",
        "cut off",
        "no certificate",
        "a path",
        "nothing in it",
    ],
)
def test_a_ca_that_cannot_be_sent_is_named(tmp_path: Path, content: bytes | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_bytes(content)
    settings = read(MLFLOW_TRACKING_SERVER_CERT_PATH=str(ca))
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
        job_files(training_environment(settings), settings)


@pytest.mark.parametrize("own", [False, True])
def test_the_client_certificate_goes_with_the_training_for_none_but_its_login(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    sent = theirs if own else ours
    changed = {"MLFLOW_TRACKING_CLIENT_CERT_PATH": str(ours)}
    if own:
        changed["MLFLOW_TRACKING_CLIENT_CERT_PATH_ON_INSTANCE"] = str(theirs)
    for named in ("", "MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        caplog.clear()
        settings = read(**changed, TRAINING_ENV=named)
        environment = training_environment(settings)
        assert "MLFLOW_TRACKING_CLIENT_CERT_PATH" not in environment, "it is not where it is here"
        file, names = job_files(environment, settings)
        assert (file.text, file.variable, file.secret) == (
            sent.read_text(),
            "MLFLOW_TRACKING_CLIENT_CERT_PATH",
            True,
        )
        assert "MLFLOW_TRACKING_CLIENT_CERT_PATH" in names.text.splitlines()
        assert not names.secret
        assert ("MLFLOW_TRACKING_CLIENT_CERT_PATH: set " in caplog.text) is not own
        mounts = docker_argv(docker_arguments({}, mlflow_run="1", files=[file, names]))
        assert any(f"{DIRECTORY}mlflow-client.pem" in word for word in mounts)
        key = sent.read_text().split("PRIVATE KEY-----\n")[1].splitlines()[0]
        assert key in secrets_in(environment, settings)


def test_a_client_certificate_that_the_image_has_is_taken_from_there(tmp_path: Path) -> None:
    settings = read(
        MLFLOW_TRACKING_CLIENT_CERT_PATH=str(Authority(tmp_path).issue("ours")),
        TRAINING_ENV="MLFLOW_TRACKING_CLIENT_CERT_PATH=IN_THE_IMAGE",
        IN_THE_IMAGE="/etc/mlflow/client.pem",
    )
    environment = training_environment(settings)
    assert environment["MLFLOW_TRACKING_CLIENT_CERT_PATH"] == "/etc/mlflow/client.pem"
    assert [file.name for file in job_files(environment, settings)] == ["docker.env"]


@pytest.mark.parametrize("setting", ["", "_ON_INSTANCE"])
def test_a_client_certificate_that_no_server_can_be_shown_is_named(tmp_path: Path, setting: str) -> None:
    locked = Authority(tmp_path).issue("locked", passphrase="s3cret")
    name = f"MLFLOW_TRACKING_CLIENT_CERT_PATH{setting}"
    settings = read(**{name: str(locked)})
    with pytest.raises(SettingsError, match=f"{name}: the key in .* is protected by a passphrase"):
        job_files(training_environment(settings), settings)


def test_a_training_signs_its_requests_where_we_sign_ours() -> None:
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/team"
    environment = training_environment(
        read(
            MLFLOW_TRACKING_URI=arn,
            MLFLOW_TRACKING_AWS_SIGV4="1",
            SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT="https://vpce-1.example.com",
        )
    )
    assert environment["MLFLOW_TRACKING_URI"] == arn
    assert environment["MLFLOW_TRACKING_AWS_SIGV4"] == "true"
    assert environment["SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"] == "https://vpce-1.example.com"
    plain = training_environment(read())
    assert not {"MLFLOW_TRACKING_AWS_SIGV4", "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"} & plain.keys()


def test_the_image_is_built_unless_somebody_says_no() -> None:
    for changed, built in (({}, True), ({"MLPROJECT_BUILD_IMAGE": "false"}, False)):
        settings = read(**changed)
        plan = make_plan(pipeline="iris", partition="7", build=BUILD, settings=settings, config=TrainingConfig())
        assert ("--build-image" in mlflow_run_command(plan, settings, mlflow_run="1")) is built
        tags = plan.tags(deployment="d", dagster_run="r", root_run="r")
        assert tags.get("orchestrator.build_image") == (None if built else "false")
