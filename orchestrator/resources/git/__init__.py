"""A look into one commit of a remote repository, where Git lets this machine fetch it."""

from orchestrator.resources.git.commit import Entry, GitFailed, RemoteCommit, fetched

__all__ = ["Entry", "GitFailed", "RemoteCommit", "fetched"]
