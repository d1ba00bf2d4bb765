"""The container's start command, as a shell reads it: no image is built."""

from __future__ import annotations

import os
import subprocess

import pytest

from orchestrator_tests.support.dockerfile import exec_form


def start(*arguments: str, deployment: str | None) -> subprocess.Popen[str]:
    """What the entrypoint makes of a command, but for tini, which only passes it on."""
    tini, group, end, *command = exec_form("ENTRYPOINT")
    assert (tini, group, end) == ("tini", "-g", "--")
    environment = {name: value for name, value in os.environ.items() if name != "ORCHESTRATOR_DEPLOYMENT"}
    if deployment is not None:
        environment["ORCHESTRATOR_DEPLOYMENT"] = deployment
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("deployment", [None, ""])
def test_a_container_without_a_lasting_name_does_not_start_and_says_why(deployment: str | None) -> None:
    process = start("echo", "served", deployment=deployment)
    served, refused = process.communicate(timeout=60)
    assert process.returncode != 0
    assert served == ""
    (sentence,) = refused.splitlines()
    assert "ORCHESTRATOR_DEPLOYMENT" in sentence
    assert "docker run -e ORCHESTRATOR_DEPLOYMENT=" in sentence


@pytest.mark.parametrize("deployment", ["team-a", "a name; exit 7 # $(false) *"])
def test_a_container_with_a_name_runs_its_command_as_it_is(deployment: str) -> None:
    arguments = ["printf", "%s|", "two words", "$HOME", "*", ""]
    process = start(*arguments, deployment=deployment)
    assert process.communicate(timeout=60) == ("two words|$HOME|*||", "")
    assert process.returncode == 0


def test_the_command_takes_the_place_of_the_shell_so_that_signals_reach_it() -> None:
    process = start("sh", "-c", "echo $$", deployment="team-a")
    assert process.communicate(timeout=60)[0] == f"{process.pid}\n"


def test_what_the_container_runs_by_default_is_the_service() -> None:
    assert exec_form("CMD")[:2] == ["orchestrator", "serve"]
