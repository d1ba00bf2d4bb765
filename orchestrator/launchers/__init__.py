"""Where the process of each run lives, as one setting says; dagster.yaml names these two classes."""

from orchestrator.launchers.chosen import Chosen
from orchestrator.launchers.queue import Queue

__all__ = ["Chosen", "Queue"]
