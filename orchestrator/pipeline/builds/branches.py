"""Which branches are trained: what TRAIN_BRANCHES names, else the primary branch; change requests only when named.

A build of any other branch becomes a partition that a person may launch. An MLproject is code that runs with the
pipeline's secrets, and anybody can open a pull request: so no wildcard reaches over to one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

from orchestrator.resources.jenkins import CUSTOMARY_BRANCHES, Build, JobKind, JobOverview, without_credentials

_CHANGE_REQUEST = re.compile(r"(?i)(PR|MR)-\d+([-_/].*)?|\d\d/\d+/\d+")
"""The names that branch sources give to change requests: GitHub, Bitbucket and Gitea; GitLab; Gerrit."""

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class BranchChoice:
    """Which branches a tick trains, and why.

    Attributes:
        job: full name of the job that the pipeline watches.
        kind: what it is.
        patterns: TRAIN_BRANCHES.
        primary: the primary branches, which are trained where there are no patterns.
        evidence: how they are known, or why they are not.
        remembered: the primary branches as Jenkins or the remote told last: for the next tick.
        branches: all that Jenkins shows, and is told to train or not.
        change_requests: those of them that are somebody's pull or merge request.
    """

    job: str
    kind: JobKind
    patterns: tuple[str, ...] = ()
    primary: frozenset[str] = frozenset()
    evidence: str = ""
    remembered: tuple[str, ...] = ()
    branches: frozenset[str] = frozenset()
    change_requests: frozenset[str] = frozenset()

    def may_train(self, job: str) -> bool:
        """Whether some build of a job may be trained.

        Args:
            job: full name of the job, or of a branch's.
        """
        if self.kind is JobKind.PLAIN:
            return True
        return self._trains_branch(branch_of(job, self.job))

    def trains(self, build: Build) -> bool:
        """Whether a build is trained."""
        if self.kind is JobKind.PLAIN:
            change_request = build.change_request or is_change_request(build.branch or "")
            return not self.patterns or _is_named(build.branch or "", self.patterns, change_request=change_request)
        return self._trains_branch(branch_of(build.job, self.job), change_request=build.change_request)

    def is_primary(self, build: Build) -> bool:
        """Whether a build is of a primary branch, or of a plain job, and of no change request."""
        if self.of_change_request(build):
            return False
        return self.kind is JobKind.PLAIN or branch_of(build.job, self.job) in self.primary

    def of_change_request(self, build: Build) -> bool:
        """Whether a build is of a pull or merge request, as Jenkins or its name says."""
        branch = (build.branch or "") if self.kind is JobKind.PLAIN else branch_of(build.job, self.job)
        return build.change_request or branch in self.change_requests or is_change_request(branch)

    def _trains_branch(self, branch: str, *, change_request: bool = False) -> bool:
        change_request = change_request or branch in self.change_requests or is_change_request(branch)
        if self.patterns:
            return _is_named(branch, self.patterns, change_request=change_request)
        return branch in self.primary and not change_request

    def __str__(self) -> str:
        """What the tick understood, for people; empty where there is nothing to choose."""
        if self.kind is JobKind.PLAIN:
            return f"builds of {', '.join(self.patterns)} only (TRAIN_BRANCHES)" if self.patterns else ""
        trained = {branch for branch in self.branches if self._trains_branch(branch)}
        requests = self.change_requests - trained
        others = self.branches - self.change_requests - trained
        counts = [
            f"{len(found)} {noun}{'' if len(found) == 1 else plural}"
            for found, noun, plural in ((requests, "change request", "s"), (others, "other branch", "es"))
            if found
        ]
        left_out = f"; not trained: {' and '.join(counts)}" if counts else ""
        return f"multibranch project, {self._trained(trained)}{left_out}"

    def _trained(self, trained: Collection[str]) -> str:
        names = ", ".join(sorted(trained)[:5]) + (", ..." if len(trained) > 5 else "")
        if self.patterns:
            given = f"TRAIN_BRANCHES={','.join(self.patterns)}"
            return f"training {names} ({given})" if trained else f"nothing is trained: {given} matches no branch"
        if self.primary:
            return f"training {names or ', '.join(sorted(self.primary))} ({self.evidence})"
        if not self.branches:
            return "which has no branch yet"
        return f"nothing is trained: {self.evidence}; set TRAIN_BRANCHES to the branches to train, as in main,release/*"


def choose_branches(
    overview: JobOverview,
    *,
    job: str,
    patterns: Sequence[str],
    known: Sequence[str],
    head: Callable[[str], str | None],
) -> BranchChoice:
    """Decide what is trained of a job.

    Without patterns, the primary branch: as Jenkins marks it, else the HEAD of the remote, else what either of them
    told before, else the only one of `main` and `master`.

    Args:
        overview: of the job.
        job: its full name.
        patterns: TRAIN_BRANCHES.
        known: the primary branches as an earlier tick knew them.
        head: asks a Git remote for its default branch; only where Jenkins marks none.
    """
    if overview.kind is JobKind.PLAIN:
        return BranchChoice(job, overview.kind, tuple(patterns), remembered=tuple(known))
    named = {branch_of(summary.job, job): summary for summary in overview.jobs}
    requests = frozenset(
        branch for branch, summary in named.items() if summary.change_request or is_change_request(branch)
    )
    own = frozenset(named) - requests
    marked = frozenset(branch for branch in own if named[branch].primary)
    if marked or patterns:
        primary, evidence, remembered = marked, "the primary branch, as Jenkins marks it", tuple(sorted(marked))
    else:
        primary, evidence, remembered = _unmarked(own, known=known, remote=overview.remote, head=head)
    return BranchChoice(
        job,
        overview.kind,
        tuple(patterns),
        primary=primary,
        evidence=evidence,
        remembered=remembered or tuple(known),
        branches=frozenset(named),
        change_requests=requests,
    )


def _unmarked(
    branches: frozenset[str], *, known: Sequence[str], remote: str | None, head: Callable[[str], str | None]
) -> tuple[frozenset[str], str, tuple[str, ...]]:
    """The primary branches where Jenkins marks none, how they are known or why not, and what to remember."""
    if not branches:
        return frozenset(), "Jenkins shows change requests only", ()
    default = head(remote) if remote else None
    if default:
        found = frozenset({default} & branches)
        where = without_credentials(remote or "")
        evidence = f"the HEAD of {where}" if found else f"Jenkins has no branch {default}, the HEAD of {where}"
        return found, evidence, (default,)
    if known:
        found = frozenset(known) & branches
        names = ", ".join(known)
        return found, "the primary branch until now" if found else f"Jenkins has no branch {names} any more", ()
    customary = frozenset(CUSTOMARY_BRANCHES) & branches
    if len(customary) == 1:
        return customary, "by its name, because Jenkins marks no primary branch", ()
    which = "both main and master exist" if customary else "there is neither main nor master"
    return frozenset(), f"Jenkins marks no primary branch, no remote tells its HEAD, and {which}", ()


def branch_of(job: str, project: str) -> str:
    """The branch of a job of a multibranch project, as people write it: `feature/x` of `team/churn/feature%2Fx`."""
    return unquote(job.removeprefix(f"{project}/"))


def is_change_request(branch: str) -> bool:
    """Whether a branch is called as branch sources call pull and merge requests."""
    return _CHANGE_REQUEST.fullmatch(branch) is not None


def _is_named(branch: str, patterns: Sequence[str], *, change_request: bool) -> bool:
    return any(
        fnmatchcase(branch, pattern) and not (change_request and _reaches_over(pattern, branch)) for pattern in patterns
    )


def _reaches_over(pattern: str, branch: str) -> bool:
    """Whether a wildcard stands where the name of a change request has not come to its number yet."""
    literal = _WILDCARD.split(pattern, maxsplit=1)[0]
    kind = re.split(r"\d", branch, maxsplit=1)[0]
    return literal != pattern and len(literal) < max(1, len(kind))
