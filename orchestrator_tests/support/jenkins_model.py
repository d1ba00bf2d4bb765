"""A compact Jenkins in memory, asked directly or over HTTP; for tests of builds and of the Jenkins client."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.errors import JenkinsBadAnswer, JenkinsNotFound, JenkinsRefused, JenkinsUnavailable
from orchestrator.resources.jenkins import Build, BuildPage, JobKind, JobOverview, JobSummary, UnreadableBuild
from orchestrator_sandbox.jenkins.beans import NEWEST_BUILDS
from orchestrator_sandbox.jenkins.tree import Bean, Tree, export
from orchestrator_sandbox.web import HandlerServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REMOTE = "git://git.example.com/churn.git"


@dataclass
class Job:
    """A job's builds by number, and the number of the next one.

    Attributes:
        primary: Jenkins marks it as the primary branch.
        contributor: Jenkins marks it as somebody's change request.
    """

    next_number: int = 1
    builds: dict[int, Build] = field(default_factory=dict)
    primary: bool = False
    contributor: bool = False

    def newest_first(self) -> list[Build]:
        return sorted(self.builds.values(), key=lambda build: -build.number)


@dataclass
class Model:
    """Jobs and builds as they are in Jenkins; a `Source` of pipeline/builds/discovery.

    Attributes:
        remote: what the branch source says of the repository.
        heads: Git remote → its default branch.
        heads_asked: how often a remote was asked.
        unknown_fields: of a job, which the server does not know.
        records_loaded: builds that Jenkins had to load from its disk, were its cache empty.
        rewrite: changes what the server sends.
        deaf: the server sends whole pages, whatever `tree=` asks for, with what this makes of the fields of a job.
        riddles: job and number of the builds of which Jenkins says what cannot be: in lists ...
        readable_alone: ... and, unless this is set, also when they are asked for alone.
    """

    job: str = "team/churn"
    multibranch: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    now: int = 1_700_000_000_000
    away: bool = False
    revoked: bool = False
    requests: int = 0
    bytes_sent: int = 0
    before_request: Callable[[], None] = lambda: None
    remote: str | None = None
    heads: dict[str, str] = field(default_factory=dict)
    heads_asked: int = 0
    records_loaded: int = 0
    unknown_fields: frozenset[str] = frozenset()
    rewrite: Callable[[bytes], bytes] = lambda body: body
    deaf: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    riddles: set[tuple[str, int]] = field(default_factory=set)
    readable_alone: bool = False

    def start(self, job: str | None = None, *, after_ms: int = 1000) -> Build:
        name = job or self.job
        self.now += after_ms
        of = self.jobs.setdefault(name, Job())
        url = f"http://jenkins.example.com/job/{name.replace('/', '/job/')}/{of.next_number}/"
        build = Build(of.next_number, self.now, None, name, 0, url, COMMIT, "main", REMOTE)
        of.builds[build.number] = build
        of.next_number += 1
        return build

    def finish(self, build: Build, result: str = "SUCCESS") -> Build:
        done = replace(build, result=result, duration_ms=1234)
        self.jobs[build.job].builds[build.number] = done
        return done

    def add(self, result: str = "SUCCESS", job: str | None = None) -> Build:
        return self.finish(self.start(job), result)

    def delete(self, build: Build) -> None:
        del self.jobs[build.job].builds[build.number]

    def delete_job(self, job: str | None = None) -> None:
        del self.jobs[job or self.job]

    def everything(self) -> list[Build]:
        return [build for name in self._visible() for build in self.jobs[name].builds.values()]

    def overview(self, job: str, *, newest: int) -> JobOverview:
        self._ask()
        if job == self.job and self.multibranch:
            heads = tuple(self._head(name, min(newest, 1)) for name in self._visible())
            return JobOverview(JobKind.MULTIBRANCH, heads, self.remote)
        return JobOverview(JobKind.PLAIN, (self._head(self._existing(job), newest),))

    def builds(self, job: str, *, start: int, stop: int) -> BuildPage:
        self._ask()
        everything = self.jobs[self._existing(job)].newest_first()
        self.records_loaded += len(everything if stop > NEWEST_BUILDS else everything[:NEWEST_BUILDS])
        builds = everything[start:stop]
        return BuildPage(tuple(map(self._seen, builds)), whole=len(builds) == stop - start)

    def default_branch(self, remote: str) -> str | None:
        self.heads_asked += 1
        return self.heads.get(remote)

    def build(self, job: str, number: int) -> Build:
        self._ask()
        build = self.jobs[self._existing(job)].builds.get(number)
        self.records_loaded += build is not None
        if build is None:
            raise JenkinsNotFound(f"404 from {job} #{number}")
        if (job, number) in self.riddles and not self.readable_alone:
            raise JenkinsBadAnswer("a riddle")
        return build

    def _seen(self, build: Build) -> Build | UnreadableBuild:
        riddle = (build.job, build.number) in self.riddles
        return UnreadableBuild(build.number, 0, None, "a riddle") if riddle else build

    def _visible(self) -> list[str]:
        return [name for name in self.jobs if name not in self.hidden]

    def _existing(self, job: str) -> str:
        if job not in self._visible():
            raise JenkinsNotFound(f"404 from {job}")
        return job

    def _head(self, name: str, limit: int) -> JobSummary:
        job = self.jobs[name]
        newest = tuple(map(self._seen, job.newest_first()[:limit]))
        self.records_loaded += len(newest) if limit <= 1 else len(job.newest_first()[:NEWEST_BUILDS])
        return JobSummary(
            name,
            job.next_number,
            newest,
            whole=limit > 0 and len(newest) < limit,
            primary=job.primary,
            change_request=job.contributor,
        )

    def _ask(self) -> None:
        self.requests += 1
        self.before_request()
        if self.away:
            raise JenkinsUnavailable("no connection")
        if self.revoked:
            raise JenkinsRefused("401")


def build_json(build: Build) -> dict[str, Any]:
    """A build as Jenkins' pipeline jobs report it."""
    actions: list[dict[str, Any]] = [
        {"_class": "hudson.model.CauseAction"},
        {
            "_class": "hudson.model.ParametersAction",
            "parameters": [{"name": key, "value": value} for key, value in build.parameters.items()],
        },
        {},
        {
            "_class": "hudson.plugins.git.util.BuildData",
            "lastBuiltRevision": {
                "SHA1": build.commit,
                "branch": [{"SHA1": build.commit, "name": f"refs/remotes/origin/{build.branch}"}],
            },
            "remoteUrls": [build.repository],
            "scmName": "",
        },
        {},
        {"_class": "org.jenkinsci.plugins.displayurlapi.actions.RunDisplayAction"},
    ]
    return {**brief_json(build), "actions": actions, "duration": build.duration_ms, "url": build.url}


def brief_json(build: Build) -> dict[str, Any]:
    """The part of it that `tree=number,timestamp,building,result` leaves."""
    return {
        "_class": "org.jenkinsci.plugins.workflow.job.WorkflowRun",
        "building": not build.finished,
        "number": build.number,
        "result": build.result,
        "timestamp": build.timestamp,
    }


@contextmanager
def served(model: Model, *, user: str = "ci", token: str = "t0ken") -> Iterator[str]:
    """Serve the model as Jenkins' Remote Access API; yields its address, with a path prefix."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, answer = _answer(model, self.path, self.headers.get("Authorization", ""), f"{user}:{token}")
            body = model.rewrite(json.dumps(answer, separators=(",", ":")).encode())
            model.bytes_sent += len(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Tests keep their output clean."""

    server = HandlerServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jenkins"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(model: Model, path: str, authorization: str, login: str) -> tuple[int, object]:
    if authorization != "Basic " + base64.b64encode(login.encode()).decode():
        return 401, {}
    url = urlsplit(path)
    tree = parse_qs(url.query)["tree"][0]
    words = url.path.removeprefix("/jenkins/").removesuffix("/api/json").split("/")
    number = int(words.pop()) if words[-1].isdigit() else None
    job = "/".join(unquote(word) for word in words[1::2])
    try:
        if model.deaf:
            return 200, _whole_page(model, job, number, model.deaf)
        bean = _page(model, job, number)
    except JenkinsNotFound:
        return 404, {}
    except JenkinsRefused:
        return 401, {}
    return 200, export(bean, Tree.parse(tree))


def _page(model: Model, job: str, number: int | None) -> Bean:
    if number is not None:
        return _plain(build_json(model.build(job, number)))
    model._ask()
    if not (model.multibranch and job == model.job):
        return _job_page(model, model._existing(job))
    source = [{"_class": f"{_METADATA}.ObjectMetadataAction", "objectUrl": model.remote}] if model.remote else []
    return Bean(
        _MULTIBRANCH,
        lambda: {
            "actions": [Bean(None), *map(_plain, source)],
            "jobs": lambda: [_job_page(model, name) for name in model._visible()],
        },
    )


def _whole_page(
    model: Model, job: str, number: int | None, shape: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    if number is not None:
        return build_json(model.build(job, number))
    model._ask()
    if model.multibranch and job == model.job:
        jobs = [shape(_whole_job(model, name)) for name in model._visible()]
        return {"_class": _MULTIBRANCH, "actions": [{}], "description": None, "views": [], "jobs": jobs}
    return shape(_whole_job(model, model._existing(job)))


def _whole_job(model: Model, name: str) -> dict[str, Any]:
    job = model.jobs[name]
    builds = [build_json(build) for build in job.newest_first()]
    return {
        "_class": _PIPELINE,
        "actions": _job_actions(job),
        "allBuilds": builds,
        "buildable": True,
        "builds": builds[:NEWEST_BUILDS],
        "color": "blue",
        "healthReport": [{"score": 100}],
        "lastBuild": builds[0] if builds else None,
        "name": name.rpartition("/")[2],
        "nextBuildNumber": job.next_number,
        "property": [{}],
    }


def _job_page(model: Model, name: str) -> Bean:
    job = model.jobs[name]

    def loaded(builds: list[Build]) -> list[Bean]:
        model.records_loaded += len(builds)
        return [_plain(build_json(build)) for build in builds]

    def last() -> Bean | None:
        return next(iter(loaded(job.newest_first()[:1])), None)

    fields = {
        "actions": list(map(_plain, _job_actions(job))),
        "name": name.rpartition("/")[2],
        "allBuilds": lambda: loaded(job.newest_first()),
        "builds": lambda: loaded(job.newest_first()[:NEWEST_BUILDS]),
        "lastBuild": last,
        "nextBuildNumber": job.next_number,
    }
    return Bean(_PIPELINE, lambda: {key: read for key, read in fields.items() if key not in model.unknown_fields})


def _plain(fields: dict[str, Any]) -> Bean:
    """A bean of what is JSON already."""
    return Bean(
        fields.get("_class"),
        lambda: {
            key: [_plain(item) if isinstance(item, dict) else item for item in value]
            if isinstance(value, list)
            else _plain(value)
            if isinstance(value, dict)
            else value
            for key, value in fields.items()
            if key != "_class"
        },
    )


_PIPELINE = "org.jenkinsci.plugins.workflow.job.WorkflowJob"
_MULTIBRANCH = "org.jenkinsci.plugins.workflow.multibranch.WorkflowMultiBranchProject"
_METADATA = "jenkins.scm.api.metadata"


def _job_actions(job: Job) -> list[dict[str, Any]]:
    """What `tree=actions[_class]` shows of a branch job of a real Jenkins: most actions are not exported."""
    actions: list[dict[str, Any]] = [{}, {}, {"_class": "com.cloudbees.plugins.credentials.ViewCredentialsAction"}]
    for marked, name in ((job.primary, "PrimaryInstance"), (job.contributor, "Contributor")):
        actions += [{"_class": f"{_METADATA}.{name}MetadataAction"}] if marked else []
    return actions
