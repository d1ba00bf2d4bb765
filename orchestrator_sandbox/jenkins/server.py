"""A Jenkins server for the sandbox: it answers the Remote Access API, and really builds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from orchestrator_sandbox.door import SandboxDoor
from orchestrator_sandbox.folders import kept_secret, private_folder
from orchestrator_sandbox.jenkins.access import Access
from orchestrator_sandbox.jenkins.api import JenkinsApi
from orchestrator_sandbox.jenkins.beans import Exporter
from orchestrator_sandbox.jenkins.builds import Builder
from orchestrator_sandbox.jenkins.faults import JenkinsFaults
from orchestrator_sandbox.jenkins.home import BY_PUSH, BuildRecord, Home, JobConfig, JobStore
from orchestrator_sandbox.jenkins.polling import Poller
from orchestrator_sandbox.processes.child import kept_port
from orchestrator_sandbox.web import WebServer


class JenkinsServer:
    """Serves and builds from the start until it is closed; its jobs and builds stay in its directory.

    Attributes:
        url: its address, with a slash at the end.
        access: its user, API token, password, and whether everybody may look; may be changed at any time.
        faults: makes it misbehave.

    Args:
        directory: where it keeps everything; one that was used before is taken up again.
        port: TCP port on loopback; 0: any free one, the same at each start if possible.
        user: the one user's name.
        anonymous_read: everybody may look, which lets a browser follow links without a login.
        executors: how many builds may run at once.
        poll_seconds: how often Git remotes are asked for commits that no push announced.
        variables: what every build finds in its environment, such as where it publishes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        user: str = "orchestrator",
        anonymous_read: bool = False,
        executors: int = 2,
        poll_seconds: float = 10,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        private_folder(directory)
        self.port = port or kept_port(directory / "port")
        self.url = f"http://127.0.0.1:{self.port}/"
        self.access = Access(
            user, kept_secret(directory / "token"), kept_secret(directory / "password"), anonymous_read
        )
        self.faults = JenkinsFaults()
        self._home = Home(directory)
        workspaces = directory / "workspaces"
        shutil.rmtree(workspaces, ignore_errors=True)  # of builds that the last server was killed in
        workspaces.mkdir()
        self._builder = Builder(self._home, workspaces, root=self.url, executors=executors, variables=variables or {})
        self._poller = Poller(self._home, self._builder, seconds=poll_seconds)
        try:
            api = JenkinsApi(
                self._home,
                self._builder,
                Exporter(self._home, self.url, self._builder.in_queue),
                access=self.access,
                faults=self.faults,
                notified=lambda repository: self._poller.poll(),
                delete_job=self.delete_job,
            )
            self._web = WebServer(SandboxDoor(api.app), port=self.port)
        except BaseException:
            self._stop_building()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort what is being built; returns when no thread, process or port is left."""
        self.faults.stop()
        self._web.close()
        self._stop_building()

    def _stop_building(self) -> None:
        self._poller.close()
        self._builder.close()

    def env(self) -> dict[str, str]:
        """The settings that lead to this server and its first job that builds."""
        jobs = (job for job in list(self._home.jobs.values()) if job.config.kind not in ("folder", "organization"))
        first = next(jobs, None)
        return {
            "JENKINS_URL": self.url,
            "JENKINS_USER": self.access.user,
            "JENKINS_TOKEN": self.access.token,
            "JENKINS_JOB_NAME": first.full_name if first else "",
        }

    def create_job(self, full_name: str, config: JobConfig) -> None:
        """Create a job and the folders it is in; one that exists keeps its builds.

        Args:
            full_name: such as `team/project`; the job of a branch is `team/project/feature%2Fx`.
            config: what it builds.
        """
        self._home.create(full_name, config)
        self._poller.poll()

    def delete_job(self, full_name: str) -> None:
        """Delete a job, what is in it, and all their builds. A new one of that name counts from 1 again."""
        for store in self._home.remove(full_name):
            self._builder.cancel_all(store.full_name)
            shutil.rmtree(store.directory)

    def notify_url(self, repository: str) -> str:
        """The address to ask for after a push, so that it is built at once; it holds a token."""
        return f"{self.url}git/notifyCommit?{urlencode({'url': repository, 'token': self.access.token})}"

    def add_build(
        self,
        job: str,
        *,
        result: str | None = "SUCCESS",
        commit: str | None = None,
        timestamp: int | None = None,
        duration: int = 1000,
        parameters: Mapping[str, str] | None = None,
        cause: str = BY_PUSH,
    ) -> BuildRecord:
        """Add a build as if it had been built.

        Args:
            job: the job's full name.
            result: None: it is still running, until `finish_build`.
            commit: the commit that was tested; None: the build checked nothing out.
            timestamp: when it started, in milliseconds since 1970; default: now.
            duration: how long it took, in milliseconds.
            parameters: its parameters.
            cause: why it was built.
        """
        store = self._home.jobs[job]
        return store.add(
            BuildRecord(
                number=0,
                timestamp=int(time.time() * 1000) if timestamp is None else timestamp,
                result=result,
                duration=duration if result else 0,
                commit=commit,
                branch=store.config.branch if commit else None,
                repository=store.config.repository if commit else None,
                parameters=parameters or {},
                cause=cause,
            )
        )

    def finish_build(self, job: str, number: int, result: str) -> BuildRecord:
        """Give an added build, that is still running, its result."""
        store = self._home.jobs[job]
        build = self.build(job, number)
        finished = replace(build, result=result, duration=max(1, int(time.time() * 1000) - build.timestamp))
        store.save(finished)
        return finished

    def job_config(self, job: str) -> JobConfig:
        """How a job is configured, such as the one of a branch that was found."""
        return self._home.jobs[job].config

    def build(self, job: str, number: int) -> BuildRecord:
        """A build.

        Raises:
            KeyError: there is no such job or build.
        """
        build = self._home.jobs[job].get(number)
        if build is None:
            raise KeyError(f"{job} #{number}")
        return build

    def builds(self, job: str) -> list[BuildRecord]:
        """The builds of a job, oldest first; none when there is no such job."""
        store: JobStore | None = self._home.jobs.get(job)
        return store.builds() if store else []

    def delete_build(self, job: str, number: int) -> None:
        """Delete a build, as Jenkins' log rotation does."""
        self._home.jobs[job].delete(number)

    def idle(self) -> bool:
        """Whether nothing is being built, and nothing waits."""
        return self._builder.idle()
