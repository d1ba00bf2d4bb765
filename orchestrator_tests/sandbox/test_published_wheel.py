"""Git push → Jenkins' tests, wheel, private index → training: each commit is trained with its own wheel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.resources.mlflow import Run
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.jenkins.home import BuildRecord, JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_sandbox.package_index import PackageIndexServer
from orchestrator_sandbox.stack import PUBLISH
from orchestrator_tests.support.attempts import ThisRun, World
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@dataclass(frozen=True)
class Team:
    """The sample project, its Jenkins job and the index that it publishes to."""

    git: GitRemote
    jenkins: JenkinsServer
    index: PackageIndexServer
    world: World
    directory: Path

    def built(self, commit: str) -> BuildRecord:
        """The build of a commit, once it has ended."""
        until(
            lambda: any(build.commit == commit and build.result for build in self.jenkins.builds("digits")), seconds=300
        )
        return next(build for build in self.jenkins.builds("digits") if build.commit == commit)

    def console(self, build: BuildRecord) -> str:
        return (self.directory / f"jenkins/jobs/digits/logs/{build.number}.log").read_text()

    def trained(self, build: BuildRecord, output: list[str]) -> Run:
        """Train what a build has built, as its backfill would."""
        attempt = self.world.attempt(
            build.number + 900,
            run=ThisRun(f"run-{build.number}"),
            build=self.world.build(build.number + 900, commit=build.commit),
            settings={
                "MLPROJECT_URI": self.git.url,
                "MLPROJECT_PARAMETERS": json.dumps({"overrides": "epochs=1"}),
                **self.index.env(),
            },
            write=output.append,
        )
        attempt.train()
        attempt.terminate()
        run = attempt.finished().run
        attempt.close()
        return run


@pytest.fixture(scope="module")
def team(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    directory = tmp_path_factory.mktemp("team")
    with (
        GitRemote(directory / "git") as git,
        PackageIndexServer(directory / "index") as index,
        JenkinsServer(directory / "jenkins", variables=index.publishing(), poll_seconds=1) as jenkins,
    ):
        jenkins.create_job("digits", JobConfig(kind="pipeline", repository=git.url, publish=PUBLISH))
        git.notify(jenkins.notify_url(git.url))
        yield Team(git, jenkins, index, world, directory)


def version_of(commit: str) -> str:
    return f"1.0.0+g{commit[:12]}"


def reword(tree: Path) -> None:
    """Change the package, so that its output tells which wheel was imported."""
    recording = tree / "src/digits/recording.py"
    recording.write_text(re.sub("pictures to learn from", "pictures to study", recording.read_text()))


def test_each_commit_is_trained_with_the_wheel_that_jenkins_has_published_of_it(team: Team) -> None:
    first = team.built(team.git.head())
    second = team.built(team.git.commit("Say it in other words", reword))
    for build in (first, second):
        assert build.result == "SUCCESS", team.console(build)
    wheels = {wheel.name for wheel in team.index.packages.iterdir()}
    assert wheels == {f"digits-{version_of(build.commit or '')}-py3-none-any.whl" for build in (first, second)}
    # The newer one first, and the old build after it, as in a backfill.
    for build, words in ((second, "pictures to study"), (first, "pictures to learn from")):
        output: list[str] = []
        run = team.trained(build, output)
        text = "".join(output)
        assert run.status == "FINISHED"
        assert run.tags["digits.version"] == version_of(build.commit or "")
        assert f"Installed digits {version_of(build.commit or '')}, the wheel of this commit" in text
        assert words in text
        assert team.index.password not in text
        assert run.metrics["accuracy"] > 0.8
