"""How the sandbox's Jenkins builds: a queue, executors, and a workspace for each build."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import SandboxError
from orchestrator_sandbox.git import git, git_environment
from orchestrator_sandbox.jenkins.beans import QueueItem, job_path
from orchestrator_sandbox.jenkins.home import BuildRecord, Home, JobStore
from orchestrator_sandbox.processes.child import ChildProcess

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
TESTS_FAILED = 1
"""pytest's exit status when some tests failed: https://docs.pytest.org/en/stable/reference/exit-codes.html"""


@dataclass
class _Running:
    """A build that an executor works on."""

    aborted: bool = False
    child: ChildProcess | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Builder:
    """Builds what is asked for, a few builds at a time; of a freestyle job never two at once.

    Args:
        home: the jobs.
        directory: where the workspaces are made.
        root: Jenkins' own URL.
        executors: how many builds may run at once.
        variables: what every build finds in its environment.
    """

    def __init__(self, home: Home, directory: Path, *, root: str, executors: int, variables: Mapping[str, str]) -> None:
        self.home = home
        self.executors = executors
        self._directory = directory
        self._root = root
        self._variables = variables
        self._changed = threading.Condition()
        self._pending: list[QueueItem] = []
        self._items: dict[int, QueueItem] = {}
        self._running: dict[tuple[str, int], _Running] = {}
        self._busy: list[str] = []
        self._closing = False
        self._threads = [threading.Thread(target=self._execute, name=f"jenkins-executor-{n}") for n in range(executors)]
        for thread in self._threads:
            thread.start()

    def enqueue(self, job: JobStore, *, parameters: Mapping[str, str], cause: str) -> QueueItem:
        """Ask for a build. One that waits already, with the same parameters, is not asked for twice."""
        with self._changed:
            for item in self._pending:
                if item.job == job.full_name and item.parameters == parameters:
                    return item
            item = QueueItem(
                id=len(self._items) + 1, job=job.full_name, since=_now(), parameters=parameters, cause=cause
            )
            self._items[item.id] = item
            self._pending.append(item)
            self._changed.notify_all()
            return item

    def item(self, number: int) -> QueueItem | None:
        """A queue item, also of a build that has started."""
        return self._items.get(number)

    def in_queue(self, full_name: str) -> bool:
        """Whether a build of this job waits."""
        return any(item.job == full_name for item in self._pending)

    def idle(self) -> bool:
        """Whether nothing is being built, and nothing waits."""
        return not self._pending and not self._busy

    def stop(self, job: str, number: int) -> None:
        """Abort a build; nothing happens when it has ended."""
        running = self._running.get((job, number))
        if running:
            with running.lock:
                running.aborted = True
                if running.child:
                    running.child.close()

    def cancel_all(self, job: str) -> None:
        """Forget what waits of a job, abort what runs, and return when nothing of it runs any more."""
        with self._changed:
            self._pending = [item for item in self._pending if item.job != job]
        for name, number in list(self._running):
            if name == job:
                self.stop(name, number)
        with self._changed:
            self._changed.wait_for(lambda: job not in self._busy)

    def close(self) -> None:
        """Abort everything; returns when no thread and no process is left."""
        with self._changed:
            self._closing = True
            self._pending.clear()
            self._changed.notify_all()
        for job in {job for job, _ in list(self._running)}:
            self.cancel_all(job)
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[QueueItem, JobStore] | None:
        for item in self._pending:
            job = self.home.jobs.get(item.job)
            if job and (job.config.kind == "pipeline" or item.job not in self._busy):
                return item, job
        return None

    def _execute(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next())
                entry = self._next()
                if self._closing:
                    return
                if entry is None:  # its job was deleted at this very moment
                    continue
                item, job = entry
                self._pending.remove(item)
                self._busy.append(item.job)
                build = job.add(
                    BuildRecord(
                        number=0,
                        timestamp=_now(),
                        parameters=item.parameters,
                        cause=item.cause,
                        queue_id=item.id,
                    )
                )
                self._items[item.id] = replace(item, number=build.number)
                running = self._running[item.job, build.number] = _Running()
            try:
                _Build(job, build, running, self._directory, self._root, self._variables).run()
            finally:
                with self._changed:
                    del self._running[item.job, build.number]
                    self._busy.remove(item.job)
                    self._changed.notify_all()


class _Build:
    def __init__(
        self,
        job: JobStore,
        build: BuildRecord,
        running: _Running,
        directory: Path,
        root: str,
        variables: Mapping[str, str],
    ) -> None:
        self.job = job
        self.build = build
        self.running = running
        self.root = root
        self.variables = variables
        self.log = job.log(build.number)
        self.workspace = directory / f"{quote(job.full_name, safe='')}@{build.number}"

    def run(self) -> None:
        started = time.monotonic()
        result = "FAILURE"
        try:
            self._say(self.build.cause, f"Building in workspace {self.workspace}")
            result = self._checkout_and_test()
        except SandboxError as error:
            self._say(f"ERROR: {error}")
        finally:
            shutil.rmtree(self.workspace, ignore_errors=True)
            if self.running.aborted:
                result = "ABORTED"
                self._say("Build was aborted")
            self._say(f"Finished: {result}")
            duration = int((time.monotonic() - started) * 1000)
            self.job.save(replace(self.build, result=result, duration=max(1, duration)))

    def _checkout_and_test(self) -> str:
        config = self.job.config
        if config.repository is None:
            self._say("ERROR: this job has no repository")
            return "FAILURE"
        self._say(f"Cloning the remote Git repository {config.repository}")
        clone = ["git", "clone", "--quiet", "--branch", config.branch, config.repository, str(self.workspace)]
        if self._step(clone, cwd=self.job.directory) != 0:
            return "FAILURE"
        commit = git("rev-parse", "HEAD", cwd=self.workspace)
        self.build = replace(self.build, commit=commit, branch=config.branch, repository=config.repository)
        self.job.save(self.build)
        message = git("log", "-1", "--format=%s", cwd=self.workspace)
        self._say(
            f"Checking out Revision {commit} (refs/remotes/origin/{config.branch})",
            f'Commit message: "{message}"',
            f"[{self.job.name}] $ python {' '.join(config.command)}",
        )
        code = self._step([sys.executable, *config.command], cwd=self.workspace)
        if code == 0 and config.publish:
            self._say(f"[{self.job.name}] $ {' '.join(config.publish)}")
            return "SUCCESS" if self._step(config.publish, cwd=self.workspace) == 0 else "FAILURE"
        if code == 0:
            return "SUCCESS"
        return "UNSTABLE" if config.unstable and code == TESTS_FAILED else "FAILURE"

    def _step(self, argv: Sequence[str], *, cwd: Path) -> int:
        with self.running.lock:
            if self.running.aborted:
                return 1
            self.running.child = child = ChildProcess(
                argv,
                name=f"the build {self.job.full_name} #{self.build.number}",
                log=self.log,
                env=self._environment(),
                cwd=cwd,
                grace_seconds=3,
            )
        with child:
            return child.wait()

    def _environment(self) -> dict[str, str]:
        url = f"{self.root}{job_path(self.job.full_name)}{self.build.number}/"
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # what is installed beside our Python
            **self.variables,
            **{name: text for name, text in git_environment().items() if name.startswith("GIT_")},
            **self.build.parameters,
            "CI": "true",
            "JENKINS_URL": self.root,
            "JOB_NAME": self.job.full_name,
            "BUILD_NUMBER": str(self.build.number),
            "BUILD_URL": url,
            "GIT_COMMIT": self.build.commit or "",
            "WORKSPACE": str(self.workspace),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # what happens to be installed here is none of the project's
        }

    def _say(self, *lines: str) -> None:
        with self.log.open("a") as log:
            log.writelines(f"{line}\n" for line in lines)


def _now() -> int:
    return int(time.time() * 1000)
