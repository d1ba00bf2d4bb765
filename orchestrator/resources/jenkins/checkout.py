"""Which commit, branch and repository a Jenkins build stands for, from any shape of its `actions`.

Evidence before guesses: what the build does not prove is refused, with the candidates, before money is spent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from orchestrator.resources.jenkins.remotes import LONGEST_REMOTE, GitAddress, repository_key, without_credentials


@dataclass(frozen=True)
class Checkout:
    """What the build says of the project's own checkout.

    Attributes:
        commit: the full hash, in lower case; None when the build does not prove which one.
        branch: `main`, without remote or `refs/`.
        remote: the repository, without credentials.
        change_request: it is of a pull or merge request, so that anybody may have written it.
        doubt: why there is no commit, or no remote that others can use: one sentence for people.
    """

    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    change_request: bool = False
    doubt: str | None = None


@dataclass(frozen=True)
class _Candidate:
    """One BuildData action: one Git checkout of the build.

    Attributes:
        heads: the hashes of the branches that it is of; none when Jenkins does not tell.
        remotes: all its remotes, expanded, in Jenkins' order (which means nothing); not to be shown as they are.
        named: the job's author gave this SCM a name, which few do for a project's only one.
    """

    commit: str
    branch: str | None
    heads: frozenset[str]
    remotes: tuple[str, ...]
    named: bool

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(repository_key(remote) for remote in self.remotes) - {""}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(key.rpartition("/")[2] for key in self.keys)

    def usable(self) -> Iterator[str]:
        """Those of its remotes that others can use, without credentials."""
        return (str(GitAddress.parse(remote)) for remote in self.remotes if _fault(remote) is None)

    @property
    def merged_by_jenkins(self) -> bool:
        """Whether Jenkins merged it in its own workspace: then it is nobody's head, and nobody else has it."""
        return bool(self.heads) and self.commit not in self.heads

    def is_of(self, revision: _ScmRevision) -> bool:
        """Whether it checked out what the branch source chose, or a merge of it."""
        return not {self.commit, *self.heads}.isdisjoint(revision.hashes)

    def __str__(self) -> str:
        shown = " or ".join(map(without_credentials, self.remotes))
        return f"{shown or 'a remote without a name'} at {self.commit[:12]}"


@dataclass(frozen=True)
class _ScmRevision:
    """What the branch source chose to build: `jenkins.scm.api.SCMRevisionAction`.

    Attributes:
        hashes: the branch's head, or the change request's.
        merged: what was tested is a merge of it.
    """

    hashes: tuple[str, ...]
    merged: bool
    change_request: bool


def own_checkout(
    actions: Sequence[Mapping[str, Any]], *, job: str, project: str | None, parameters: Mapping[str, str]
) -> Checkout | None:
    """The checkout of the project itself, out of several; None when the build tells of none.

    The Git plugin adds one BuildData per checkout. It may be of the project, of a pipeline library, or of whatever else
    the pipeline looks into: https://github.com/jenkinsci/git-plugin/blob/master/src/main/java/hudson/plugins/git/GitSCM.java
    Each of these decides where the one before it leaves several:

    1. MLPROJECT_URI is one of its remotes.
    2. It is the revision that the branch source chose, or a branch's head of it.
    3. It is of the branch that a multibranch project's job is called after.
    4. Names: a repository called like the job, one that is not called a library, one without an SCM name.
    5. Of one repository that is checked out several times, the last.

    Args:
        actions: the build's `actions`, in Jenkins' order.
        job: full name of the job.
        project: MLPROJECT_URI, if set.
        parameters: of the build: Jenkins records a remote as the job spells it, `$VARIABLES` included.
    """
    job_branch = unquote(job.rpartition("/")[2])
    candidates = [candidate for action in actions if (candidate := _candidate(action, parameters, job_branch))]
    revision = next((chosen for action in actions if (chosen := _scm_revision(action))), None)
    if not candidates:
        if revision is None:
            return None
        if revision.merged:
            doubt = "the branch source built a merge of the change request, and no checkout of the build tells which"
            return Checkout(change_request=True, doubt=doubt)
        return Checkout(revision.hashes[0], change_request=revision.change_request)

    wanted = repository_key(project or "")
    ours = [candidate for candidate in candidates if wanted and wanted in candidate.keys]
    if revision is not None and not ours:
        ours = [one for one in candidates if one.is_of(revision)]
        if not ours:
            return Checkout(
                change_request=revision.change_request,
                doubt=f"the branch source chose revision {' or '.join(revision.hashes)}, and the build checked out "
                f"{_listed(candidates)}: set MLPROJECT_URI to the repository to train",
            )
    likely = _narrowed(ours or candidates, _evidence(job, revision, wanted))
    if len({candidate.keys for candidate in likely}) > 1:
        return Checkout(
            doubt=f"the build checked out {_listed(likely)}, and nothing tells which of them is the project: "
            "set MLPROJECT_URI to its repository"
        )
    return _checkout(likely[-1], revision, wanted=wanted, project=project)


def _evidence(job: str, revision: _ScmRevision | None, wanted: str) -> Iterator[Callable[[_Candidate], bool]]:
    """What speaks for a candidate, the strongest first."""
    segments = {segment.lower() for segment in job.split("/")}
    branch = unquote(job.rpartition("/")[2]) if "/" in job else None
    if revision is not None:
        yield lambda candidate: candidate.is_of(revision)
    yield lambda candidate: branch is not None and candidate.branch == branch
    if wanted:
        yield lambda candidate: wanted.rpartition("/")[2] in candidate.names
    yield lambda candidate: bool(candidate.names & segments)
    yield lambda candidate: not any(_LIBRARY.search(name) for name in candidate.names)
    yield lambda candidate: not candidate.named


def _narrowed(
    candidates: Sequence[_Candidate], evidence: Iterable[Callable[[_Candidate], bool]]
) -> Sequence[_Candidate]:
    for speaks_for in evidence:
        candidates = [candidate for candidate in candidates if speaks_for(candidate)] or candidates
    return candidates


def _checkout(candidate: _Candidate, revision: _ScmRevision | None, *, wanted: str, project: str | None) -> Checkout:
    change_request = candidate.merged_by_jenkins or bool(revision and revision.change_request)
    if candidate.merged_by_jenkins:
        heads = ", ".join(sorted(candidate.heads))
        return Checkout(
            branch=candidate.branch,
            remote=next(candidate.usable(), None),
            change_request=change_request,
            doubt=f"Jenkins tested {candidate.commit}, a merge that exists in its own workspace only (of {heads}): "
            "have the branch source build the change request itself instead of its merge, or give `version` in the "
            "launchpad",
        )
    usable = list(candidate.usable())
    named = [remote for remote in usable if wanted and repository_key(remote) == wanted]
    remote = next(iter([*named, *usable]), None)
    doubt = None
    if remote is None and candidate.remotes and not is_address(project):
        doubt = (
            f"Jenkins checked out {without_credentials(candidate.remotes[0])}, {_fault(candidate.remotes[0])}: "
            "set MLPROJECT_URI to the repository"
        )
    return Checkout(candidate.commit, candidate.branch, remote, change_request=change_request, doubt=doubt)


def is_address(project: str | None) -> bool:
    """Whether MLPROJECT_URI names a repository, and not only a folder in the build's own (`#sub`)."""
    return bool(project) and not str(project).startswith("#")


def _fault(remote: str) -> str | None:
    """What stands against a remote, as it follows its name in a sentence; None: others can use it."""
    windows_path = re.match(r"[A-Za-z]:[\\/]", remote)
    if "$" in remote or windows_path or ":" not in remote or remote.lower().startswith("file:"):
        return "which only Jenkins itself can use"
    try:
        GitAddress.parse(remote)
    except ValueError as error:
        return f"which is refused because {error}"
    return None


def _listed(candidates: Sequence[_Candidate]) -> str:
    return "; ".join(dict.fromkeys(map(str, candidates)))


_HASH = re.compile(r"[0-9a-fA-F]{7,64}")
_LIBRARY = re.compile(r"(^|[^a-z])(lib|libs|library|libraries)([^a-z]|$)")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_.]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_EXPANSIONS = 10
"""How deep parameters may name one another; one that names itself ends there."""


def _candidate(action: Mapping[str, Any], parameters: Mapping[str, str], job_branch: str) -> _Candidate | None:
    revision = action.get("lastBuiltRevision")
    commit = _hash(revision.get("SHA1")) if isinstance(revision, dict) else None
    if not isinstance(revision, dict) or commit is None:
        return None
    branches = revision.get("branch")
    branches = [item for item in branches if isinstance(item, dict)] if isinstance(branches, list) else []
    remotes = action.get("remoteUrls")
    remotes = [url for url in remotes if isinstance(url, str) and url] if isinstance(remotes, list) else []
    return _Candidate(
        commit=commit,
        branch=_best_branch(branches, commit, job_branch),
        heads=frozenset(head for item in branches if (head := _hash(item.get("SHA1")))),
        remotes=tuple(_expanded(remote, parameters) for remote in remotes),
        named=bool(action.get("scmName")),
    )


def _best_branch(items: Sequence[Mapping[str, Any]], commit: str, job_branch: str) -> str | None:
    """Of the branches that Jenkins found at a commit, in no order that means something.

    That of a multibranch project's job; else one whose head it is; else `main` or `master`, which others follow.
    """
    found = [(name, _hash(item.get("SHA1")) == commit) for item in items if (name := item.get("name"))]
    branches = [
        (branch, is_head) for name, is_head in found if (branch := branch_name(name, job_branch=job_branch)) is not None
    ]
    ranks = {
        branch: (branch != job_branch, not is_head, branch not in CUSTOMARY_BRANCHES) for branch, is_head in branches
    }
    return min(ranks, key=lambda branch: ranks[branch], default=None)


def _scm_revision(action: Mapping[str, Any]) -> _ScmRevision | None:
    """Read a revision of any branch source: Git's, GitHub's, GitLab's, Gitea's or Bitbucket's.

    A plain branch has `hash`; GitHub's pull request `pullHash` and `merge`; the others' change requests `origin`.
    """
    revision = action.get("revision")
    if not isinstance(revision, dict):
        return None
    origin = revision.get("origin")
    found = [revision.get("hash"), revision.get("pullHash"), origin.get("hash") if isinstance(origin, dict) else None]
    hashes = tuple(commit for value in found if (commit := _hash(value)))
    merged = revision.get("merge") is True
    change_request = merged or any(_hash(value) for value in found[1:])
    return _ScmRevision(hashes, merged=merged, change_request=change_request) if hashes else None


def _hash(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and _HASH.fullmatch(value) else None


def _expanded(remote: str, parameters: Mapping[str, str]) -> str:
    """A remote with the build's own parameters in it; what is no parameter stays as it is."""
    for _ in range(_EXPANSIONS):
        expanded = _VARIABLE.sub(lambda found: parameters.get(found[1] or found[2], found[0]), remote)
        if expanded == remote or len(expanded) > LONGEST_REMOTE:
            break
        remote = expanded
    return remote


CUSTOMARY_BRANCHES = ("main", "master")
_REMOTE = re.compile(r"^(origin|upstream)\d*/")
"""The customary names of a remote; of another one, nothing tells it from the first part of a branch's name."""


def branch_name(name: object, *, job_branch: str | None = None) -> str | None:
    """`main` of `refs/remotes/fork/main`, `remotes/origin/main`, `origin/main`, `upstream/main`, `refs/heads/main`, ...

    Args:
        name: as Jenkins tells it.
        job_branch: the branch that the job is called after, which may begin like a remote.
    """
    if not isinstance(name, str) or name in ("", "detached"):
        return None
    plain = name.removeprefix("refs/")
    if plain.startswith("remotes/"):
        plain = plain.removeprefix("remotes/").partition("/")[2]
    elif plain != job_branch and not plain.startswith("heads/"):
        plain = _REMOTE.sub("", plain)
    plain = plain.removeprefix("heads/")
    return None if plain in ("", "HEAD") or not can_be_branch(plain) else plain


LONGEST_BRANCH = 500


def can_be_branch(name: str) -> bool:
    """Whether a branch of this name goes on from here: no option of a program, and nothing that cannot be printed."""
    return name.isprintable() and len(name) <= LONGEST_BRANCH and not name.startswith("-")
