"""Where Dagster keeps its runs, events and logs: chosen by settings alone."""

from orchestrator.storage.choice import Storage

__all__ = ["Storage"]
