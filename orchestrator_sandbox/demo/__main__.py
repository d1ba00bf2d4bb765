"""`python -m orchestrator_sandbox.demo`: what `orchestrator demo` starts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from orchestrator.cli.demo import demo_options
from orchestrator.cli.program import run

NEEDED = ("asyncssh", "flask", "hatchling", "mlflow", "moto", "pypiserver", "pytest", "uv")
"""What the extra `sandbox` brings."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@demo_options
def demo(*, once: bool, as_json: bool, port: int, directory: Path, projects: int) -> int:
    """The whole loop on this machine: a sandbox with Jenkins, EC2, Git and MLflow, and Dagster on it."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise click.ClickException(
            f"the demo needs {', '.join(missing)}; run `make demo`, or install the extra: pip install -e '.[sandbox]'"
        )
    from orchestrator.operate.home import private_files
    from orchestrator_sandbox.demo.loop import demo as play

    with private_files():
        return play(directory=directory, port=port, once=once, as_json=as_json, projects=projects)


if __name__ == "__main__":
    sys.exit(run(demo, name="orchestrator demo"))
