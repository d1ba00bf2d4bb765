"""`mlflow run` below our hooks, without an instance, and scripts that hide their failure; for tests of the hooks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orchestrator.remote
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.mlflow_client import client

HOOKS = Path(orchestrator.remote.__file__).parent / "hooks"

SCRIPTS = {
    "swallows": """
        try:
            with mlflow.start_run():
                raise ValueError("the data is not what it was")
        except ValueError as error:
            print("went on", error)
        """,
    "says so": """
        mlflow.start_run()
        mlflow.end_run("FAILED")
        """,
    "killed by its own hand": """
        mlflow.start_run()
        mlflow.end_run("KILLED")
        """,
    "leaves by a hook": """
        sys.excepthook = lambda *_: os._exit(0)
        with mlflow.start_run():
            raise ValueError("the data is not what it was")
        """,
}


def hook(name: str) -> Any:
    """A module of the hooks, by its file."""
    spec: Any = importlib.util.spec_from_file_location(f"hook_{name}", HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mlproject(directory: Path, script: str, command: str = "python train.py") -> Path:
    (directory / "MLproject").write_text(f"name: p\nentry_points:\n  main:\n    command: {command!r}\n")
    (directory / "train.py").write_text("import os, sys\nimport mlflow\n" + textwrap.dedent(script))
    return directory


def mlflow_run(
    server: MlflowServer,
    project: Path | str,
    *,
    home: Path,
    program: str | None = None,
    arguments: Sequence[str] = (),
    address: str = "",
    path: str = "",
) -> tuple[int, str, str]:
    """The exit status of `mlflow run` below our hooks, its output, and the status that MLflow then holds.

    Args:
        server: the server.
        project: the folder or address of the project.
        home: where the directory of the training is made.
        program: another `mlflow`, whose `python` goes with it; None: ours.
        arguments: further ones.
        address: of MLflow, as the training has it; empty: the server's own.
        path: a folder whose programs come before all others.
    """
    mlflow = client(server.url)
    run = mlflow.create_run("0", name="hooks", tags={})
    (home / "run").mkdir()
    command = program or str(Path(sys.executable).with_name("mlflow"))
    environment = {
        **os.environ,
        **server.env(),
        **({"MLFLOW_TRACKING_URI": address} if address else {}),
        "PATH": f"{path}{':' if path else ''}{Path(command).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ORCHESTRATOR_TRAINING": f"{home}/run/",
        "ORCHESTRATOR_MLFLOW": command,
        "PYTHONPATH": str(HOOKS),
        "GIT_CONFIG_NOSYSTEM": "1",  # Debian's git-lfs installs itself there; not every image's does
        "BASH_ENV": str(HOOKS / "pipes.bash"),
    }
    argv = [command, "run", str(project), "--env-manager", "local", "--run-id", run.id, "--experiment-id", "0"]
    argv += arguments
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr, mlflow.run(run.id).status
