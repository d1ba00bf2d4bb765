"""RUN_LAUNCHER chooses who launches runs; what is wrong with it is one sentence."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster_docker import DockerRunLauncher
from dagster_k8s import K8sRunLauncher

from orchestrator.errors import SettingsError
from orchestrator.launchers.celery import WorkersRunLauncher
from orchestrator.operate.home import prepare_home
from orchestrator.operate.serve import require_launcher
from orchestrator.operate.worker import work

OLD_DAGSTER_YAML = "run_queue: {max_user_code_failure_retries: 10, user_code_failure_retry_delay: 15}\n"
URL = "redis://:geheim@localhost:1/0"
OF_CONTAINERS = {"stop_timeout": 120, "auto_remove": True, "healthcheck": {"test": ["NONE"]}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RUN_LAUNCHER", "RUN_LAUNCHER_CONFIG", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    prepare_home(home)
    return home


def launcher_of(home: Path) -> object:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return instance.run_launcher


def test_without_a_setting_runs_live_here_as_they_always_did(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert type(instance.run_launcher) is dg.DefaultRunLauncher
        config = instance.get_concurrency_config().run_queue_config
        assert config is not None
        assert config.max_concurrent_runs == 25
        assert config.max_user_code_failure_retries == 10
        assert config.user_code_failure_retry_delay == 15
        assert (instance.run_coordinator.dequeue_use_threads, instance.run_coordinator.dequeue_num_workers) == (True, 4)  # type: ignore[attr-defined]
        assert not instance.run_launcher.supports_check_run_worker_health
        assert instance.info_str()  # what `dagster instance info` shows


def test_a_home_with_a_dagster_yaml_of_before_goes_on(home: Path) -> None:
    (home / "dagster.yaml").unlink()
    (home / "dagster.yaml").write_text(OLD_DAGSTER_YAML)
    assert type(launcher_of(home)) is dg.DefaultRunLauncher


def test_a_broker_makes_it_celery(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", URL)
    launcher = launcher_of(home)
    assert isinstance(launcher, WorkersRunLauncher)
    assert launcher.celery.conf.broker_url == launcher.celery.conf.result_backend == URL
    monkeypatch.setenv("RUN_LAUNCHER", "local")
    assert type(launcher_of(home)) is dg.DefaultRunLauncher


def test_the_settings_come_from_dot_env_too(home: Path) -> None:
    file = home.parent / ".env"
    file.write_text(f"CELERY_BROKER_URL={URL}\n")
    assert isinstance(launcher_of(home), WorkersRunLauncher)


def test_without_a_broker_that_answers_nothing_leaves_the_queue(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", URL)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        config = instance.get_concurrency_config().run_queue_config
        assert config is not None
        assert config.max_concurrent_runs - 0 == 0
        assert f"Maximum is {config.max_concurrent_runs}" == "Maximum is 0"
        assert config.max_concurrent_runs == 25  # what the UI shows


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"RUN_LAUNCHER": "swarm"}, "RUN_LAUNCHER='swarm' is wrong: Input should be 'local', 'celery', 'docker', "),
        ({"RUN_LAUNCHER": "celery"}, "RUN_LAUNCHER=celery needs CELERY_BROKER_URL"),
        ({"CELERY_BROKER_URL": "amqp://u:geheim@host//"}, "CELERY_BROKER_URL is wrong: it is no address of a Redis"),
        (
            {"RUN_LAUNCHER": "docker", "RUN_LAUNCHER_CONFIG": "image"},
            "RUN_LAUNCHER_CONFIG='image' is wrong: is not JSON",
        ),
        (
            {"RUN_LAUNCHER": "docker", "RUN_LAUNCHER_CONFIG": '{"imag": "x"}'},
            'RUN_LAUNCHER_CONFIG is wrong for DockerRunLauncher: Received unexpected config entry "imag"',
        ),
        (
            {"RUN_LAUNCHER": "docker", "RUN_LAUNCHER_CONFIG": '{"env_vars": "A", "container_kwargs": 7}'},
            "RUN_LAUNCHER_CONFIG is wrong for DockerRunLauncher: ",
        ),
        (
            {"RUN_LAUNCHER": "kubernetes", "RUN_LAUNCHER_CONFIG": '{"job_namespace": 7}'},
            "RUN_LAUNCHER_CONFIG is wrong for K8sRunLauncher: ",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], sentence: str
) -> None:
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    reads: list[Callable[[], object]] = [require_launcher, lambda: launcher_of(home)]
    for read in reads:
        with pytest.raises(SettingsError) as raised:
            read()
        assert sentence in str(raised.value)
        assert "geheim" not in str(raised.value)


def test_a_worker_without_a_broker_says_what_to_write(home: Path) -> None:
    with pytest.raises(SettingsError, match="a worker takes runs from CELERY_BROKER_URL, which is not set"):
        work(slots=1, name=None, say=print)


def test_a_missing_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CELERY_BROKER_URL", URL)
    for kind in ("celery", "docker", "kubernetes"):
        monkeypatch.setenv("RUN_LAUNCHER", kind)
        with pytest.raises(SettingsError, match=rf"RUN_LAUNCHER={kind} needs .*; install orchestrator\[{kind}\]"):
            launcher_of(home)


@pytest.mark.parametrize(
    ("kind", "config", "launcher"),
    [
        ("docker", {"image": "orchestrator:1", "network": "orchestrator", "env_vars": ["A"]}, DockerRunLauncher),
        (
            "kubernetes",
            {
                "dagster_home": "/home/dagster",
                "instance_config_map": "dagster-instance",
                "service_account_name": "orchestrator",
                "job_image": "registry.example.com/orchestrator:1",
                "load_incluster_config": False,
                "kubeconfig_file": "KUBECONFIG",
                "env_secrets": ["orchestrator"],
                "run_k8s_config": {"container_config": {"resources": {"requests": {"memory": "256Mi"}}}},
            },
            K8sRunLauncher,
        ),
    ],
)
def test_dagsters_own_launchers_take_their_own_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, config: dict[str, object], launcher: type
) -> None:
    kubeconfig = home.parent / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    monkeypatch.setenv("RUN_LAUNCHER", kind)
    monkeypatch.setenv("RUN_LAUNCHER_CONFIG", json.dumps(config).replace("KUBECONFIG", str(kubeconfig)))
    assert type(launcher_of(home)) is launcher


def test_a_container_gets_the_settings_of_runs_and_none_of_the_uis(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.parent / ".env").write_text("JENKINS_TOKEN=11aa\nUI_TOKEN=0123456789012345678901234567890123456789\n")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("RUN_LAUNCHER", "docker")
    monkeypatch.setenv("RUN_LAUNCHER_CONFIG", '{"image": "orchestrator:1"}')
    launcher = launcher_of(home)
    assert isinstance(launcher, DockerRunLauncher)
    assert {"JENKINS_TOKEN=11aa", "MLFLOW_EXPERIMENT_ID=7", "AWS_DEFAULT_REGION=eu-central-1"} <= set(launcher.env_vars)
    assert not any(entry.startswith(("UI_", "RUN_LAUNCHER")) for entry in launcher.env_vars)
    assert launcher.container_kwargs == OF_CONTAINERS


def test_what_the_configuration_of_containers_says_comes_on_top_of_our_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    config = {
        "image": "orchestrator:1",
        "env_vars": ["HTTPS_PROXY=http://proxy:3128", "MLFLOW_EXPERIMENT_ID=8"],
        "container_kwargs": {"mem_limit": "1g", "auto_remove": False},
    }
    monkeypatch.setenv("RUN_LAUNCHER", "docker")
    monkeypatch.setenv("RUN_LAUNCHER_CONFIG", json.dumps(config))
    launcher = launcher_of(home)
    assert isinstance(launcher, DockerRunLauncher)
    variables = dict(entry.split("=", 1) for entry in launcher.env_vars)
    assert (variables["HTTPS_PROXY"], variables["MLFLOW_EXPERIMENT_ID"]) == ("http://proxy:3128", "8")
    assert launcher.container_kwargs == {**OF_CONTAINERS, "auto_remove": False, "mem_limit": "1g"}


def test_a_container_that_has_the_files_of_secrets_gets_none_of_them_as_a_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = home.parent / "secrets"
    secrets.mkdir()
    (secrets / "JENKINS_TOKEN").write_text("11aa")
    monkeypatch.delenv("JENKINS_TOKEN", raising=False)
    monkeypatch.setenv("ORCHESTRATOR_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.setenv("RUN_LAUNCHER", "docker")
    config: dict[str, object] = {"image": "orchestrator:1"}
    for files in ([], ["ORCHESTRATOR_SECRETS_DIR=/run/secrets"], ["ORCHESTRATOR_SECRETS_DIR"]):
        monkeypatch.setenv("RUN_LAUNCHER_CONFIG", json.dumps({**config, "env_vars": files}))
        launcher = launcher_of(home)
        assert isinstance(launcher, DockerRunLauncher)
        assert "MLFLOW_EXPERIMENT_ID=7" in launcher.env_vars
        assert ("JENKINS_TOKEN=11aa" in launcher.env_vars) is not bool(files)


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
