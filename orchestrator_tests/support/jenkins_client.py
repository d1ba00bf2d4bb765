"""A client of the sandbox's Jenkins; for its tests (sandbox/jenkins)."""

from __future__ import annotations

from typing import Any

import requests

from orchestrator_sandbox.jenkins.home import BuildRecord, JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_tests.support.waiting import until

COMMIT = "c0ffee" * 6 + "c0ff"
REPOSITORY = "https://git.example.com/project.git"
UNTRIGGERED = JobConfig(repository=REPOSITORY, triggered=False)


class Client:
    """Asks a server with its API token."""

    def __init__(self, server: JenkinsServer) -> None:
        self.server = server
        self.auth = (server.access.user, server.access.token)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.server.url + path, auth=self.auth, timeout=10)

    def json(self, path: str, **parameters: str) -> Any:
        answer = requests.get(f"{self.server.url}{path}api/json", params=parameters, auth=self.auth, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **fields: str) -> requests.Response:
        return requests.post(self.server.url + path, data=fields, auth=self.auth, timeout=10, allow_redirects=False)


def numbers(answer: Any) -> list[int]:
    """The numbers of an answer's `allBuilds`."""
    return [build["number"] for build in answer["allBuilds"]]


def built(server: JenkinsServer, job: str, number: int) -> BuildRecord:
    """Await the end of a build."""

    def ended() -> BuildRecord | None:
        return next((b for b in server.builds(job) if b.number == number and b.result), None)

    build = until(ended, seconds=30)
    assert build is not None
    return build
