"""The sandbox's Jenkins as others see it: jobs and builds with the classes and properties of a real one.

The shapes are those of Jenkins 2.5xx with the Git, Folders, Pipeline and Multibranch plugins, see
https://www.jenkins.io/doc/book/using/remote-access-api/ and the `@Exported` members of `hudson.model.Job`,
`hudson.model.Run` and `hudson.plugins.git.util.BuildData`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from orchestrator_sandbox.jenkins.actions import (
    LIBRARY_COMMIT,
    branch_actions,
    build_data,
    parameter_values,
    request_actions,
)
from orchestrator_sandbox.jenkins.home import BuildRecord, Home, JobStore
from orchestrator_sandbox.jenkins.tree import ALWAYS, Bean

NEWEST_BUILDS = 100
"""How many builds Jenkins lists under `builds`; `allBuilds` has all, and must be asked for."""

JOB_CLASSES = {
    "freestyle": "hudson.model.FreeStyleProject",
    "pipeline": "org.jenkinsci.plugins.workflow.job.WorkflowJob",
    "multibranch": "org.jenkinsci.plugins.workflow.multibranch.WorkflowMultiBranchProject",
    "folder": "com.cloudbees.hudson.plugins.folder.Folder",
    "organization": "jenkins.branch.OrganizationFolder",
}
HOLDS_JOBS = ("folder", "organization", "multibranch")
COLORS = {
    "SUCCESS": "blue",
    "UNSTABLE": "yellow",
    "FAILURE": "red",
    "NOT_BUILT": "notbuilt",
    "ABORTED": "aborted",
}

PERMALINKS: Mapping[str, Callable[[BuildRecord], bool]] = {
    "lastBuild": lambda build: True,
    "lastCompletedBuild": lambda build: build.result is not None,
    "lastFailedBuild": lambda build: build.result == "FAILURE",
    "lastStableBuild": lambda build: build.result == "SUCCESS",
    "lastSuccessfulBuild": lambda build: build.result in ("SUCCESS", "UNSTABLE"),
    "lastUnstableBuild": lambda build: build.result == "UNSTABLE",
    "lastUnsuccessfulBuild": lambda build: build.result not in (None, "SUCCESS"),
}


@dataclass(frozen=True)
class QueueItem:
    """A build that was asked for; number is that of the build once it has started."""

    id: int
    job: str
    since: int
    parameters: Mapping[str, str]
    cause: str
    number: int | None = None


def job_path(full_name: str) -> str:
    """The path of a job's page, `job/team/job/project/`; a branch's slash is encoded twice."""
    return "".join(f"job/{quote(part, safe='')}/" for part in full_name.split("/"))


def permalink(job: JobStore, name: str) -> BuildRecord | None:
    """The build behind a number, or a name such as lastSuccessfulBuild."""
    if name.isdecimal():
        return job.get(int(name))
    matches = PERMALINKS.get(name)
    return next(filter(matches, job.newest_first()), None) if matches else None


def color(job: JobStore) -> str:
    """The colour of a job's ball: its last result, and whether it is being built."""
    newest = job.newest_first()
    result = next((build.result for build in newest if build.result), "NOT_BUILT")
    return COLORS[result] + ("_anime" if newest and newest[0].result is None else "")


class Exporter:
    """Makes the exported objects.

    Args:
        home: the jobs.
        root: Jenkins' own URL, with a slash at the end.
        in_queue: whether a job, by full name, has a queued build.
    """

    def __init__(self, home: Home, root: str, in_queue: Callable[[str], bool]) -> None:
        self.home = home
        self.root = root
        self.in_queue = in_queue

    def server(self, executors: int) -> Bean:
        """What /api/json shows."""
        view = Bean("hudson.model.AllView", lambda: {"name": "all", "url": self.root}, {"name": 2, "url": 2})
        return Bean(
            "hudson.model.Hudson",
            lambda: {
                "assignedLabels": [Bean(None, lambda: {"name": "built-in"}, default=2)],
                "mode": "NORMAL",
                "nodeDescription": "the Jenkins controller's built-in node",
                "nodeName": "",
                "numExecutors": executors,
                "description": None,
                "jobs": self.jobs(""),
                "overallLoad": Bean(None),
                "primaryView": view,
                "quietDownReason": None,
                "quietingDown": False,
                "slaveAgentPort": -1,
                "unlabeledLoad": Bean("jenkins.model.UnlabeledLoadStatistics"),
                "url": self.root,
                "useCrumbs": True,
                "useSecurity": True,
                "views": [view],
            },
        )

    def jobs(self, parent: str) -> list[Bean]:
        """The jobs in a folder, "" for those at the top."""
        return [self.job(child) for child in self.home.children(parent)]

    def job(self, job: JobStore) -> Bean:
        """A job, a folder, or a multibranch project."""
        common = {
            "actions": [
                Bean(None),
                Bean("com.cloudbees.plugins.credentials.ViewCredentialsAction"),
                *branch_actions(job.config),
            ],
            "description": None,
            "displayName": unquote(job.name),
            "displayNameOrNull": None,
            "fullDisplayName": " » ".join(map(unquote, job.full_name.split("/"))),
            "fullName": job.full_name,
            "name": job.name,
            "url": self.root + job_path(job.full_name),
        }
        holds_jobs = job.config.kind in HOLDS_JOBS
        return Bean(
            JOB_CLASSES[job.config.kind],
            lambda: common | (self._folder(job) if holds_jobs else self._project(job)),
            {"name": 3, "url": 2, "color": 2, "allBuilds": -2},
        )

    def _folder(self, job: JobStore) -> dict[str, object]:
        view = Bean(
            "hudson.model.AllView",
            lambda: {"name": "all", "url": self.root + job_path(job.full_name)},
            {"name": 2, "url": 2},
        )
        properties: dict[str, object] = {
            "healthReport": [],
            "jobs": lambda: self.jobs(job.full_name),
            "primaryView": view,
            "views": [view],
        }
        return properties | ({"sources": [Bean(None)]} if job.config.kind == "multibranch" else {})

    def _project(self, job: JobStore) -> dict[str, object]:
        definitions = [self._definition(name, value) for name, value in job.config.parameters.items()]
        properties = [
            Bean(
                "hudson.model.ParametersDefinitionProperty",
                lambda: {"parameterDefinitions": definitions},
                default=ALWAYS,
            )
        ]
        return {
            "buildable": True,
            "allBuilds": lambda: self.builds(job, job.newest_first()),
            "builds": lambda: self.builds(job, job.newest_first()[:NEWEST_BUILDS]),
            "color": lambda: color(job),
            "firstBuild": lambda: next(iter(self.builds(job, job.builds())), None),
            "healthReport": [],
            "inQueue": lambda: self.in_queue(job.full_name),
            "keepDependencies": False,
            **{name: lambda name=name: self._linked(job, name) for name in PERMALINKS},
            "nextBuildNumber": job.next_number,
            "property": properties if definitions else [],
            "queueItem": None,
            "concurrentBuild": job.config.kind == "pipeline",
            "disabled": False,
        }

    @staticmethod
    def _definition(name: str, value: str) -> Bean:
        default = parameter_values({name: value})[0]
        return Bean(
            "hudson.model.StringParameterDefinition",
            lambda: {
                "defaultParameterValue": default,
                "description": "",
                "name": name,
                "type": "StringParameterDefinition",
            },
            default=ALWAYS,
        )

    def _linked(self, job: JobStore, name: str) -> Bean | None:
        build = permalink(job, name)
        return self.build(job, build) if build else None

    def builds(self, job: JobStore, records: Iterable[BuildRecord]) -> Iterable[Bean]:
        """Builds of a job, made one by one as they are wanted."""
        return (self.build(job, build) for build in records)

    def build(self, job: JobStore, build: BuildRecord) -> Bean:
        """One build."""
        pipeline = job.config.kind == "pipeline"
        return Bean(
            "org.jenkinsci.plugins.workflow.job.WorkflowRun" if pipeline else "hudson.model.FreeStyleBuild",
            lambda: {
                "actions": lambda: self._actions(job, build),
                "artifacts": [],
                "building": build.result is None,
                "description": None,
                "displayName": f"#{build.number}",
                "duration": build.duration,
                "estimatedDuration": -1,
                "executor": None,
                "fullDisplayName": f"{' » '.join(map(unquote, job.full_name.split('/')))} #{build.number}",
                "id": str(build.number),
                "inProgress": build.result is None,
                "keepLog": False,
                "number": build.number,
                "queueId": build.queue_id,
                "result": build.result,
                "timestamp": build.timestamp,
                "url": self.build_url(job, build),
                **({"changeSets": []} if pipeline else {"builtOn": "", "changeSet": Bean(None)}),
                "culprits": [],
                "nextBuild": lambda: self._neighbour(job, build, +1),
                "previousBuild": lambda: self._neighbour(job, build, -1),
            },
            {"number": 2, "url": 2},
        )

    def build_url(self, job: JobStore, build: BuildRecord) -> str:
        """The address of a build's page."""
        return f"{self.root}{job_path(job.full_name)}{build.number}/"

    def _neighbour(self, job: JobStore, build: BuildRecord, step: int) -> Bean | None:
        builds = job.builds() if step > 0 else job.newest_first()
        other = next((b for b in builds if (b.number - build.number) * step > 0), None)
        if other is None:
            return None
        url = self.build_url(job, other)
        return Bean(None, lambda: {"number": other.number, "url": url}, default=2)

    def _actions(self, job: JobStore, build: BuildRecord) -> list[Bean]:
        actions = [*request_actions(build.parameters, build.cause), Bean(None)]
        if job.config.library and build.commit:
            actions += [build_data(build, job.config.library, LIBRARY_COMMIT, "master"), Bean(None)]
        if build.commit and build.repository and build.branch:
            branch = build.branch
            if job.config.kind == "freestyle":
                branch = f"refs/remotes/origin/{branch}"
            actions += [build_data(build, build.repository, build.commit, branch), Bean(None)]
        return [*actions, Bean("org.jenkinsci.plugins.displayurlapi.actions.RunDisplayAction")]

    def queue_item(self, item: QueueItem) -> Bean:
        """A queue item; it has an executable once the build has started."""
        job = self.home.jobs.get(item.job)
        build = job.get(item.number) if job and item.number else None
        has_left = item.number is not None
        return Bean(
            "hudson.model.Queue$LeftItem" if has_left else "hudson.model.Queue$BuildableItem",
            lambda: {
                "actions": request_actions(item.parameters, item.cause),
                "blocked": False,
                "buildable": not has_left,
                "id": item.id,
                "inQueueSince": item.since,
                "params": "".join(f"\n{name}={value}" for name, value in item.parameters.items()),
                "stuck": False,
                "task": self.job(job) if job else None,
                "url": f"queue/item/{item.id}/",
                "why": None if has_left else "Waiting for next available executor",
                **({"cancelled": False} if has_left else {}),
                **({"executable": self.build(job, build)} if job and build else {}),
            },
        )
