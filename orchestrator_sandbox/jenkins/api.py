"""Jenkins' Remote Access API over HTTP, as far as clients of builds use it.

See https://www.jenkins.io/doc/book/using/remote-access-api/
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, abort, redirect, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter
from werkzeug.wrappers import Response as AnyResponse

from orchestrator_sandbox.jenkins.access import SESSION_COOKIE, VERSION, Access, error_page
from orchestrator_sandbox.jenkins.beans import HOLDS_JOBS, Exporter, permalink
from orchestrator_sandbox.jenkins.builds import Builder
from orchestrator_sandbox.jenkins.faults import JenkinsFaults
from orchestrator_sandbox.jenkins.home import BuildRecord, Home, JobStore
from orchestrator_sandbox.jenkins.pages import build_page, console_of, job_page, jobs_page, trail_to
from orchestrator_sandbox.jenkins.tree import Bean, ByDepth, MalformedTreeError, Tree, export


class _JobPath(BaseConverter):
    """`job/team/job/project` → `team/project`."""

    regex = r"job/[^/]+(?:/job/[^/]+)*"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return "/".join(value.removeprefix("job/").split("/job/"))


class _BuildId(BaseConverter):
    regex = r"\d+|last[A-Z][A-Za-z]+Build|lastBuild"


class JenkinsApi:
    """The routes; `app` is the WSGI application.

    Args:
        home: the jobs.
        builder: builds them.
        exporter: what is shown of them.
        access: who may see and do what.
        faults: how to misbehave.
        notified: called with the repository's URL when a push is announced.
        delete_job: deletes a job, by full name.
    """

    def __init__(
        self,
        home: Home,
        builder: Builder,
        exporter: Exporter,
        *,
        access: Access,
        faults: JenkinsFaults,
        notified: Callable[[str], None],
        delete_job: Callable[[str], None],
    ) -> None:
        self.home = home
        self.builder = builder
        self.exporter = exporter
        self.access = access
        self.notified = notified
        self.delete_job = delete_job
        self.app = app = Flask("jenkins")
        app.url_map.converters |= {"jobs": _JobPath, "build": _BuildId}
        app.before_request(faults.answer)
        app.before_request(access.refusal)
        app.after_request(self._sign)
        app.register_error_handler(HTTPException, _explain)
        app.register_error_handler(MalformedTreeError, _explain_tree)
        for method, path, view in self._routes():
            app.add_url_rule(path, f"{method} {path}", view, methods=[method])

    def _routes(self) -> list[tuple[str, str, Callable[..., AnyResponse | str]]]:
        exporter = self.exporter
        return [
            ("GET", "/", lambda: jobs_page("All jobs", [], list(self.home.jobs.values()))),
            ("GET", "/login", lambda: "<html><head><title>Sign in - Jenkins</title></head></html>"),
            ("GET", "/api/json", lambda: self._json(exporter.server(self.builder.executors))),
            ("GET", "/crumbIssuer/api/json", self._crumb),
            ("GET", "/git/notifyCommit", self._notify),
            ("GET", "/queue/item/<int:number>/api/json", self._queue_item),
            ("POST", "/createItem", self._create_item),
            ("GET", "/<jobs:job>/", self._job_page),
            ("GET", "/<jobs:job>/api/json", lambda job: self._json(exporter.job(self._job(job)))),
            ("POST", "/<jobs:job>/build", lambda job: self._build_it(job, with_parameters=False)),
            ("POST", "/<jobs:job>/buildWithParameters", lambda job: self._build_it(job, with_parameters=True)),
            ("POST", "/<jobs:job>/doDelete", self._delete_job),
            ("GET", "/<jobs:job>/<build:build>/", lambda job, build: build_page(*self._build(job, build))),
            (
                "GET",
                "/<jobs:job>/<build:build>/api/json",
                lambda job, build: self._json(exporter.build(*self._build(job, build))),
            ),
            ("GET", "/<jobs:job>/<build:build>/consoleText", self._console),
            ("POST", "/<jobs:job>/<build:build>/stop", self._stop),
            ("POST", "/<jobs:job>/<build:build>/doDelete", self._delete_build),
        ]

    def _job(self, full_name: str) -> JobStore:
        return self.home.jobs.get(full_name) or abort(404)

    def _build(self, full_name: str, name: str) -> tuple[JobStore, BuildRecord]:
        job = self._job(full_name)
        return job, permalink(job, name) or abort(404)

    def _json(self, bean: Bean) -> Response:
        tree, depth = request.args.get("tree"), request.args.get("depth", "0")
        if tree is None and not depth.lstrip("-").isdecimal():
            return error_page(500, "Depth parameter must be a number")
        answer = export(bean, ByDepth.of(int(depth)) if tree is None else Tree.parse(tree))
        pretty = request.args.get("pretty") in ("true", "")
        text = json.dumps(answer, indent=2) if pretty else json.dumps(answer, separators=(",", ":"))
        return Response(text, content_type="application/json;charset=utf-8")

    def _crumb(self) -> Response:
        session = request.cookies.get(SESSION_COOKIE) or secrets.token_hex(16)
        fields = {"crumb": self.access.crumb(session), "crumbRequestField": "Jenkins-Crumb"}
        answer = self._json(Bean("hudson.security.csrf.DefaultCrumbIssuer", lambda: fields))
        answer.set_cookie(SESSION_COOKIE, session, httponly=True)
        return answer

    def _notify(self) -> Response:
        if not secrets.compare_digest(request.args.get("token", "").encode(), self.access.token.encode()):
            return error_page(403, "An access token is required. Please refer to Git plugin documentation.")
        self.notified(request.args.get("url", ""))
        return Response("Scheduled polling\n", content_type="text/plain;charset=utf-8")

    def _queue_item(self, number: int) -> Response:
        return self._json(self.exporter.queue_item(self.builder.item(number) or abort(404)))

    def _create_item(self) -> AnyResponse:
        """Only the copy of a job: https://…/createItem?name=new&mode=copy&from=old."""
        name, source = request.values.get("name", ""), request.values.get("from", "")
        if not name or name in self.home.jobs:
            return error_page(400, f"A job already exists with the name {name!r}")
        if request.values.get("mode") != "copy" or source not in self.home.jobs:
            return error_page(400, f"No such job: {source}")
        self.home.create(name, self.home.jobs[source].config)
        return redirect(f"/job/{name}/")

    def _build_it(self, full_name: str, *, with_parameters: bool) -> Response:
        job = self._job(full_name)
        defaults = job.config.parameters
        if bool(defaults) != with_parameters:
            return error_page(400, f"{job.name} is {'' if defaults else 'not '}parameterized")
        given = {name: request.values.get(name, default) for name, default in defaults.items()}
        item = self.builder.enqueue(job, parameters=given, cause=f"Started by user {self.access.user}")
        return Response(status=201, headers={"Location": f"{self.exporter.root}queue/item/{item.id}/"})

    def _delete_job(self, job: str) -> AnyResponse:
        self.delete_job(self._job(job).full_name)
        return redirect("/")

    def _delete_build(self, job: str, build: str) -> AnyResponse:
        store, record = self._build(job, build)
        store.delete(record.number)
        return redirect("/")

    def _stop(self, job: str, build: str) -> AnyResponse:
        store, record = self._build(job, build)
        self.builder.stop(store.full_name, record.number)
        return redirect(self.exporter.build_url(store, record))

    def _console(self, job: str, build: str) -> Response:
        return Response(console_of(*self._build(job, build)), content_type="text/plain;charset=utf-8")

    def _job_page(self, job: str) -> str:
        store = self._job(job)
        if store.config.kind in HOLDS_JOBS:
            return jobs_page(store.full_name, trail_to(store)[:-1], self.home.children(job))
        return job_page(store)

    @staticmethod
    def _sign(answer: Response) -> Response:
        answer.headers["X-Jenkins"] = VERSION
        answer.headers["X-Hudson"] = "1.395"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["X-Frame-Options"] = "sameorigin"
        return answer


def _explain(error: HTTPException) -> Any:
    if error.response is not None:  # a redirect
        return error
    return error_page(error.code or 500, error.name)


def _explain_tree(error: MalformedTreeError) -> Response:
    return error_page(500, f"Malformed tree expression: {error}")
