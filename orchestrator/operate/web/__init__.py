"""Dagster's webserver behind a door of our own; a process of its own, `python -m orchestrator.operate.web`."""
