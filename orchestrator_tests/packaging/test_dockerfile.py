"""The container's start command, as a shell reads it: no image is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_tests.support.dockerfile import PROJECT, exec_form, instructions

ENTRYPOINT = PROJECT / "deploy/container/entrypoint.sh"


def start(*arguments: str, deployment: str | None, **settings: str) -> subprocess.Popen[str]:
    """What the entrypoint makes of a command, but for tini, which only passes it on."""
    environment = {name: value for name, value in os.environ.items() if name != "ORCHESTRATOR_DEPLOYMENT"} | settings
    if deployment is not None:
        environment["ORCHESTRATOR_DEPLOYMENT"] = deployment
    pipe = subprocess.PIPE
    return subprocess.Popen([ENTRYPOINT, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def test_the_script_is_what_the_image_starts() -> None:
    (copied,) = [words for words in instructions("COPY") if words[-2] == str(ENTRYPOINT.relative_to(PROJECT))]
    assert exec_form("ENTRYPOINT") == ["tini", "-g", "--", Path(copied[-1]).name]
    assert not instructions("CMD")


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


@pytest.mark.parametrize(("settings", "port"), [({}, "7860"), ({"PORT": "8080"}, "8080")])
def test_what_the_container_runs_by_default_is_the_service(settings: dict[str, str], port: str, tmp_path: Path) -> None:
    program = tmp_path / "orchestrator"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    process = start(deployment="team-a", PATH=f"{tmp_path}:{os.environ['PATH']}", **{"PORT": "", **settings})
    assert process.communicate(timeout=60)[0] == f"serve|--host|0.0.0.0|--port|{port}|"


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/compose/jenkins/Dockerfile"])
def test_it_is_clean(file: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, PROJECT / file], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
