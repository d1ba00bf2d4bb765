"""A Jenkins other than the sandbox's, for loop/test_other_systems: multibranch, in a folder, deaf to most of `tree=`.

Shapes as in https://www.jenkins.io/doc/book/using/remote-access-api/ and what ci.jenkins.io answers.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

USER, TOKEN = "ada@example.com", "11f0e2b5c8"
PROJECT = "team/shop"
PIPELINE_LIBRARY = "https://git.example.com/build-steps.git"


@dataclass
class OtherBuild:
    """One build of a branch."""

    branch: str
    number: int
    commit: str
    result: str | None
    timestamp: int


class OtherJenkins:
    """The server, until it is closed.

    Args:
        repository: the Git remote that its builds check out.
    """

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._builds: list[OtherBuild] = []
        jenkins = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                expected = "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
                url = urlsplit(self.path)
                found = jenkins._find(url.path, parse_qs(url.query).get("tree", [""])[0])
                if self.headers.get("Authorization") != expected:
                    self._reply(401, b"<html>Invalid password/token</html>", "text/html;charset=iso-8859-1")
                elif found is None:
                    self._reply(404, b"<html>Not Found</html>", "text/html;charset=utf-8")
                else:
                    self._reply(200, json.dumps(found).encode(), "application/json;charset=utf-8")

            def _reply(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("X-Jenkins", "2.479.1")
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/ci"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def env(self) -> dict[str, str]:
        """The settings that lead here."""
        return {"JENKINS_URL": self.url, "JENKINS_USER": USER, "JENKINS_TOKEN": TOKEN, "JENKINS_JOB_NAME": PROJECT}

    def build(self, branch: str, commit: str, *, result: str | None = "SUCCESS") -> OtherBuild:
        """Add a build, which still runs when its result is None."""
        number = 1 + max((build.number for build in self._builds if build.branch == branch), default=0)
        timestamp = max([int(time.time() * 1000), *(build.timestamp + 1 for build in self._builds)])
        build = OtherBuild(branch, number, commit, result, timestamp)
        self._builds.append(build)
        return build

    def _find(self, path: str, tree: str) -> dict[str, Any] | None:
        begin = "/ci/job/team/job/shop/"
        if not path.startswith(begin) or not path.endswith("/api/json"):
            return None
        parts = [
            unquote(unquote(part)) for part in path.removeprefix(begin).removesuffix("api/json").split("/") if part
        ]
        branches = dict.fromkeys(build.branch for build in self._builds)
        start, stop = map(int, (re.findall(r"\{(\d+),(\d+)\}", tree) or [("0", "100")])[-1])
        match parts:
            case []:
                jobs = [self._job(branch, start, stop) for branch in branches]
                return {"views": [], "jobs": jobs, "actions": [{}, {}], "fullName": PROJECT, "_class": "multibranch"}
            case ["job", branch] if branch in branches:
                return self._job(branch, start, stop)
            case ["job", branch, number]:
                return next((self._build(build) for build in self._of(branch) if str(build.number) == number), None)
            case _:
                return None

    def _of(self, branch: str) -> list[OtherBuild]:
        return [build for build in reversed(self._builds) if build.branch == branch]

    def _job(self, branch: str, start: int, stop: int) -> dict[str, Any]:
        builds = self._of(branch)
        return {
            "nextBuildNumber": builds[0].number + 1,
            "color": "blue",
            "property": [{}],
            "allBuilds": [self._build(build) for build in builds[start:stop]],
            "name": quote(branch, safe=""),
            "_class": "org.jenkinsci.plugins.workflow.job.WorkflowJob",
        }

    def _build(self, build: OtherBuild) -> dict[str, Any]:
        encoded = quote(quote(build.branch, safe=""), safe="")
        return {
            "url": f"https://ci.example.com/job/team/job/shop/job/{encoded}/{build.number}/",
            "timestamp": build.timestamp,
            "inProgress": build.result is None,
            "number": build.number,
            "result": build.result,
            "previousBuild": None,
            "duration": 0 if build.result is None else 61_500,
            "building": build.result is None,
            "actions": [
                {},
                {"causes": [{"shortDescription": "Push event"}], "_class": "hudson.model.CauseAction"},
                {"parameters": [{"name": "DRY_RUN", "value": False}, {"name": "SECRET"}]},
                _build_data(PIPELINE_LIBRARY, "v2", "f" * 40),
                {},
                _build_data(self._repository, build.branch, build.commit),
                {},
            ],
        }


def _build_data(remote: str, branch: str, commit: str) -> dict[str, Any]:
    marked = {"SHA1": commit, "branch": [{"SHA1": commit, "name": branch}]}
    return {
        "scmName": "",
        "remoteUrls": [remote],
        "lastBuiltRevision": marked,
        "buildsByBranchName": {branch: {"marked": marked, "buildNumber": 1}},
        "_class": "hudson.plugins.git.util.BuildData",
    }
