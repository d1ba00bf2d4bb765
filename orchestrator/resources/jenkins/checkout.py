"""Which commit, branch and repository a Jenkins build stands for, from any shape of its `actions`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Checkout:
    """What one Git checkout of a build came to.

    Attributes:
        commit: the full hash, in lower case.
        branch: `main`, without remote or `refs/`.
        remote: the repository, without credentials.
        named: the job's author gave this SCM a name, which few do for a project's only one.
    """

    commit: str
    branch: str | None = None
    remote: str | None = None
    named: bool = False


def own_checkout(actions: Sequence[Mapping[str, Any]], *, job: str, project: str | None) -> Checkout | None:
    """The checkout of the project itself, out of several; None when the build tells of none.

    The Git plugin adds one BuildData per checkout, in the order of the checkouts, and none when the same
    revision of the same remote is checked out again (GitSCM.checkout, BuildData.similarTo). A pipeline
    library is checked out before the pipeline's first step, so that the project's own checkout follows it;
    only with "lightweight checkout" off the project comes first, and then its name has to tell.
    https://github.com/jenkinsci/git-plugin/blob/master/src/main/java/hudson/plugins/git/GitSCM.java

    So we prefer, in this order: the remote that MLPROJECT_URI names, a repository that is called like the
    job, the revision that the multibranch project chose (SCMRevisionAction), one that is not called a
    library, one without an SCM name, and the last.

    Args:
        actions: the build's `actions`, in Jenkins' order.
        job: full name of the job.
        project: MLPROJECT_URI, if set.
    """
    checkouts = [found for action in actions if (found := _checkout(action))]
    revision = next((commit for action in actions if (commit := _scm_revision(action))), None)
    if not checkouts:
        return Checkout(revision) if revision else None
    segments = {segment.lower() for segment in job.split("/")}
    wanted = repository_key(project or "")

    def likelihood(item: tuple[int, Checkout]) -> tuple[bool, bool, bool, bool, bool, int]:
        position, checkout = item
        key = repository_key(checkout.remote) if checkout.remote else ""
        name = key.rpartition("/")[2]
        return (
            key == wanted != "",
            name in segments,
            checkout.commit == revision,
            not _LIBRARY.search(name),
            not checkout.named,
            position,
        )

    return max(enumerate(checkouts), key=likelihood)[1]


_HASH = re.compile(r"[0-9a-fA-F]{7,64}")
_LIBRARY = re.compile(r"(^|[^a-z])(lib|libs|library|libraries)([^a-z]|$)")


def _checkout(action: Mapping[str, Any]) -> Checkout | None:
    revision = action.get("lastBuiltRevision")
    if not isinstance(revision, dict):
        return None
    commit = revision.get("SHA1")
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        return None
    branches = revision.get("branch")
    names = [item.get("name") for item in branches if isinstance(item, dict)] if isinstance(branches, list) else []
    remotes = action.get("remoteUrls")
    remote = next((url for url in remotes if isinstance(url, str) and url), None) if isinstance(remotes, list) else None
    return Checkout(
        commit.lower(),
        next((branch for name in names if (branch := branch_name(name))), None),
        without_credentials(remote) if remote else None,
        named=bool(action.get("scmName")),
    )


def _scm_revision(action: Mapping[str, Any]) -> str | None:
    """The hash in a `jenkins.scm.api.SCMRevisionAction`, which builds of multibranch jobs carry."""
    revision = action.get("revision")
    if not isinstance(revision, dict):
        return None
    commit = revision.get("hash") or revision.get("pullHash")
    return commit.lower() if isinstance(commit, str) and _HASH.fullmatch(commit) else None


def branch_name(name: object) -> str | None:
    """`main` of `refs/remotes/origin/main`, `origin/main`, `refs/heads/main` or `main`."""
    if not isinstance(name, str) or name in ("", "detached", "HEAD"):
        return None
    if name.startswith("refs/remotes/"):
        return name.removeprefix("refs/remotes/").partition("/")[2] or None
    return name.removeprefix("refs/heads/").removeprefix("origin/") or None


def without_credentials(remote: str) -> str:
    """A Git remote without user and password, where HTTP would carry them."""
    return re.sub(r"(?i)^(https?://)[^/@]*@", r"\1", remote)


def repository_key(remote: str) -> str:
    """What two spellings of one Git remote share: `host/path`, in lower case; "" for what is no address.

    Args:
        remote: a URL, `git@host:path` or an MLflow project URI with `#subdir`.
    """
    plain = remote.partition("#")[0].strip()
    if "://" in plain:
        try:
            parts = urlsplit(plain)
        except ValueError:
            return ""
        plain = f"{parts.netloc.rpartition('@')[2].partition(':')[0]}/{parts.path.strip('/')}"
    elif re.match(r"[^/]+:", plain):
        plain = plain.rpartition("@")[2].replace(":", "/", 1)
    return plain.rstrip("/").removesuffix(".git").replace("//", "/").lower()
