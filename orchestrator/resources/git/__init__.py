"""A look into one commit of a remote repository, where Git lets this machine fetch it."""

from orchestrator.resources.git.commit import Commit, Entry, GitFailed, fetched

__all__ = ["Commit", "Entry", "GitFailed", "fetched"]
