"""deploy/compose, read: what its script prepares is what its file asks for, and both generations of Compose take it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator_tests.support.dockerfile import PROJECT

FOLDER = PROJECT / "deploy/compose"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "compose"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("secrets", ".env"))
    subprocess.run([folder / "prepare"], check=True, capture_output=True)
    return folder


def test_every_secret_that_a_service_gets_is_declared_and_prepared(compose: dict[str, Any], prepared: Path) -> None:
    asked = {name for service in compose["services"].values() for name in service.get("secrets", [])}
    assert asked == set(compose["secrets"])
    made = {path.name: path for path in (prepared / "secrets").iterdir()}
    assert {name: f"./secrets/{name}" for name in made} == {
        name: secret["file"] for name, secret in compose["secrets"].items()
    }
    assert stat.S_IMODE((prepared / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.values()} == {0o444}
    assert stat.S_IMODE((prepared / ".env").stat().st_mode) == 0o600


def test_what_is_prepared_stays_as_it_is(prepared: Path) -> None:
    files = [prepared / ".env", *sorted((prepared / "secrets").iterdir())]
    before = [file.read_text() for file in files]
    subprocess.run([prepared / "prepare"], check=True, capture_output=True)
    assert [file.read_text() for file in files] == before
    secrets = [text for file, text in zip(files, before, strict=True) if file.name.endswith(("PASSWORD", "TOKEN"))]
    assert len(set(secrets)) == len(secrets)
    assert all(len(text) == 48 for text in secrets)


def test_nothing_stands_in_it_that_docker_compose_1_29_refuses(compose: dict[str, Any]) -> None:
    assert "name" not in compose
    for service in compose["services"].values():
        assert isinstance(service.get("env_file", ""), str)
        assert isinstance(service.get("build", ""), str)


def test_each_service_has_limits_and_a_health_check_and_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert {"mem_limit", "restart", "security_opt"} <= service.keys(), name
        assert "healthcheck" in service or name.startswith("serve"), name  # the image has that of `serve`
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${MLFLOW_LISTEN:-127.0.0.1:")), name


def test_the_docker_socket_is_in_one_service_that_is_off(compose: dict[str, Any]) -> None:
    with_socket = [name for name, service in compose["services"].items() if "docker.sock" in str(service)]
    assert with_socket == ["serve-docker"]
    assert compose["services"]["serve-docker"]["profiles"] == ["docker-launcher"]
    assert "COMPOSE_PROFILES=local,jenkins\n" in (FOLDER / "env.example").read_text()


def test_jenkins_configuration_is_yaml_whose_secrets_it_gets(compose: dict[str, Any]) -> None:
    casc = (FOLDER / "jenkins/casc.yaml").read_text()
    users = yaml.safe_load(casc)["jenkins"]["securityRealm"]["local"]["users"]
    passwords = {user["password"].strip("${}") for user in users}
    assert passwords == set(compose["services"]["jenkins"]["secrets"])
