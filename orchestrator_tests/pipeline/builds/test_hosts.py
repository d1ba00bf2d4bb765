"""On which Git hosts a build's own remote may be, and who decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest

from orchestrator.errors import BuildUnusable, SettingsError
from orchestrator.pipeline.builds import find_build
from orchestrator.resources.jenkins import Build, Jenkins
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.instances import new_instance
from orchestrator_tests.support.jenkins_model import Job, Model
from orchestrator_tests.support.sensor_daemon import Daemon

OWN = "git@git.example.com:team/churn.git"
EVIL = "https://evil.example/churn.git"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Each test has its own: what is noted is noted for good."""
    with new_instance() as instance:
        yield instance


def add(model: Model, repository: str | None, job: str | None = None) -> Build:
    build = model.add(job=job)
    model.jobs[build.job].builds[build.number] = replace(build, repository=repository)
    return model.jobs[build.job].builds[build.number]


def test_a_build_on_another_host_than_the_first_success_is_refused_and_noted(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    own = add(model, OWN)
    daemon.tick()
    add(model, EVIL)
    sub = add(model, "https://git.example.com.evil.example/churn.git")
    other_scheme = add(model, "https://GIT.example.com:8443/other.git")
    assert daemon.tick() == ["2", "3", "4"]
    assert find_build(jenkins, daemon.instance, "churn", "1", settings) == own
    assert find_build(jenkins, daemon.instance, "churn", "4", settings) == other_scheme
    for number in (2, sub.number):
        with pytest.raises(BuildUnusable, match=r"Refused .*only remotes on git.example.com .*set MLPROJECT_HOSTS"):
            find_build(jenkins, daemon.instance, "churn", str(number), settings)


def test_the_tick_says_which_host_is_noted_and_which_build_is_refused(
    model: Model, daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    add(model, OWN)
    daemon.tick()
    shown = capfd.readouterr().err
    assert "Noted which Git host builds may be on" in shown
    assert "git.example.com (the host of team/churn #1" in shown
    add(model, EVIL)
    daemon.tick()
    shown = capfd.readouterr().err
    assert "Launched a run that its first step refuses: build team/churn #2 checked out https://evil.example" in shown


def test_the_allowed_hosts_are_shown_with_each_build(model: Model, daemon: Daemon) -> None:
    add(model, OWN)
    daemon.tick()
    event = daemon.instance.get_latest_materialization_event(dg.AssetKey(["churn", "jenkins_build"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert "git.example.com" in str(event.asset_materialization.metadata["allowed Git hosts"].value)


def test_a_newer_success_on_another_host_does_not_allow_itself(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    add(model, OWN)
    daemon.tick()
    for _ in range(3):
        add(model, EVIL)
        daemon.tick()
    daemon.cursor = None
    daemon.tick()
    with pytest.raises(BuildUnusable, match=r"evil\.example"):
        find_build(jenkins, daemon.instance, "churn", "4", settings)


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        ("git.example.com", False),
        ("evil.example", True),
        ("git.example.com, Evil.Example.", True),
        ("*.example", True),
        ("*.evil.example", False),
        ("*", True),
    ],
)
def test_the_setting_prevails_over_what_was_noted(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings, hosts: str, allowed: bool
) -> None:
    add(model, OWN)
    daemon.tick()
    build = add(model, EVIL)
    given = JenkinsSettings.model_validate(settings.model_dump() | {"hosts": hosts})
    if allowed:
        assert find_build(jenkins, daemon.instance, "churn", "2", given) == build
    else:
        with pytest.raises(BuildUnusable, match="MLPROJECT_HOSTS"):
            find_build(jenkins, daemon.instance, "churn", "2", given)


@pytest.mark.parametrize("hosts", ["https://github.com", "github.com/team", "me@github.com", "a b"])
def test_what_is_no_host_is_refused(daemon: Daemon, hosts: str) -> None:
    source = SettingsSource(lookup=(daemon.environment | {"MLPROJECT_HOSTS": hosts}).get)
    with pytest.raises(SettingsError, match=r"MLPROJECT_HOSTS.*no name of a host"):
        source.read(JenkinsSettings)


def test_mlproject_uri_is_always_allowed_and_its_folder_alone_is_not(
    model: Model, daemon: Daemon, settings: JenkinsSettings
) -> None:
    add(model, OWN)
    daemon.tick()
    build = add(model, EVIL)
    with Jenkins(settings, project="https://elsewhere.example/churn.git#sub") as jenkins:
        assert find_build(jenkins, daemon.instance, "churn", "2", settings) == build
    with Jenkins(settings, project="#sub") as jenkins, pytest.raises(BuildUnusable, match=r"evil\.example"):
        find_build(jenkins, daemon.instance, "churn", "2", settings)


def test_the_primary_branch_decides_and_no_other_branch(
    model: Model, daemon: Daemon, jenkins: Jenkins, settings: JenkinsSettings
) -> None:
    model.multibranch = True
    model.jobs = {"team/churn/main": Job(primary=True)}
    daemon.tick()
    add(model, EVIL, job="team/churn/feature%2Fx")
    add(model, EVIL, job="team/churn/PR-1")
    daemon.tick()
    add(model, OWN, job="team/churn/main")
    add(model, EVIL, job="team/churn/feature%2Fx")
    daemon.tick()
    assert find_build(jenkins, daemon.instance, "churn", "main#1", settings).job == "team/churn/main"
    for partition in ("feature/x#1", "feature/x#2", "PR-1#1"):
        with pytest.raises(BuildUnusable, match=r"only remotes on git.example.com"):
            find_build(jenkins, daemon.instance, "churn", partition, settings)


def test_where_the_sensor_is_off_jenkins_is_asked_for_the_primary_branch(
    model: Model, jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    model.multibranch = True
    model.jobs = {"team/churn/main": Job(primary=True)}
    add(model, OWN, job="team/churn/main")
    add(model, EVIL, job="team/churn/PR-1")
    with pytest.raises(BuildUnusable, match=r"only remotes on git.example.com"):
        find_build(jenkins, instance, "churn", "PR-1#1", settings)


def test_a_change_request_of_a_project_without_another_success_allows_nothing(
    model: Model, jenkins: Jenkins, instance: dg.DagsterInstance, settings: JenkinsSettings
) -> None:
    model.multibranch = True
    model.jobs = {}
    add(model, EVIL, job="team/churn/PR-42")
    with pytest.raises(BuildUnusable, match="no host"):
        find_build(jenkins, instance, "churn", "PR-42#1", settings)


@pytest.mark.parametrize(
    "uri",
    [
        "--upload-pack=id",
        " -x",
        "ext::sh -c id",
        "\x1b]0;x\x07https://host/r",
        "https://host/r\n",
        "ssh://git:Zq@host/r",
        "https://me:Z/q@host/r",
        "git:Zq@host:r",
        "https://host/r?token=Zq",
    ],
)
def test_an_mlproject_uri_that_is_no_address_is_refused_without_being_shown(
    uri: str, settings: JenkinsSettings, instance: dg.DagsterInstance
) -> None:
    with Jenkins(settings, project=uri) as jenkins, pytest.raises(SettingsError, match="MLPROJECT_URI holds") as error:
        find_build(jenkins, instance, "churn", "1", settings)
    assert "Zq" not in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "uri",
    [
        "/srv/git/churn",
        "file:///srv/git/churn#sub dir",
        "http://127.0.0.1:8080/churn.git",
        "git://127.0.0.1:9418/churn#sub",
        "git@github.com:team/iris.git#training",
        "ssh://git@host:22/x@y",
        "https://git.example.com:8080/~me@team/iris.git#a@b",
        "./project",
    ],
)
def test_an_mlproject_uri_that_works_today_still_does(
    uri: str, model: Model, settings: JenkinsSettings, instance: dg.DagsterInstance
) -> None:
    build = model.add()
    with Jenkins(settings, project=uri) as jenkins:
        assert find_build(jenkins, instance, "churn", "1", settings).number == build.number
