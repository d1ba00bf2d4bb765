"""How the sandbox's Jenkins learns of new commits and branches: by asking the Git remote."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from urllib.parse import quote

from orchestrator.errors import SandboxError
from orchestrator_sandbox.git import git
from orchestrator_sandbox.jenkins.builds import Builder
from orchestrator_sandbox.jenkins.home import BY_PUSH, Home, JobStore


class Poller:
    """Asks at the start, every few seconds, and when a push is announced; builds each branch's new head.

    Args:
        home: the jobs.
        builder: builds what is new.
        seconds: time between two rounds.
    """

    def __init__(self, home: Home, builder: Builder, *, seconds: float) -> None:
        self._home = home
        self._builder = builder
        self._seconds = seconds
        self._asked = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="jenkins-polling")
        self._thread.start()

    def poll(self) -> None:
        """Ask now."""
        self._asked.set()

    def close(self) -> None:
        """Stop asking; returns when the thread is gone."""
        self._closing = True
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._asked.clear()
            for job in list(self._home.jobs.values()):
                if job.config.repository and job.config.triggered and job.config.kind not in ("folder", "organization"):
                    self._check(job, job.config.repository)
            self._asked.wait(self._seconds)

    def _check(self, job: JobStore, repository: str) -> None:
        try:
            listing = git("ls-remote", "--symref", repository, "HEAD", "refs/heads/*", cwd=self._home.directory)
        except SandboxError:
            return  # the remote is away; the next round asks again
        pairs = (line.split("\trefs/heads/") for line in listing.splitlines() if "\trefs/heads/" in line)
        heads = {branch: commit for commit, branch in pairs}
        head = re.match(r"ref: refs/heads/(\S+)\tHEAD", listing)
        with self._home.lock:
            if self._home.jobs.get(job.full_name) is not job:
                return
            if job.config.kind == "multibranch":
                self._index(job, heads, primary=head[1] if head else None)
            else:
                self._build(job, heads.get(job.config.branch))

    def _index(self, project: JobStore, heads: dict[str, str], *, primary: str | None) -> None:
        """Make a job of each branch; it is built when it is new."""
        for branch in heads:
            name = f"{project.full_name}/{quote(branch, safe='')}"
            is_primary = project.config.marks_primary and branch == primary
            config = replace(project.config, kind="pipeline", branch=branch, primary=is_primary)
            if name not in self._home.jobs:
                created = self._home.create(name, config)
                self._build(created, heads[branch])

    def _build(self, job: JobStore, head: str | None) -> None:
        if head and head != job.last_seen and not self._closing:
            job.last_seen = head
            self._builder.enqueue(job, parameters=dict(job.config.parameters), cause=BY_PUSH)
