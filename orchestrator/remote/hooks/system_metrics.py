"""Switches MLflow's system metrics on where they can be recorded.

Loaded by `sitecustomize.py` into the process of `mlflow run`. MLflow's `start_run` raises where they are wanted and
psutil is not there, so they are on where it evidently is:
https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/fluent.py
Needs Python 3.8.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable

VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

_FIND = "import importlib.util as u, sys; sys.exit(not (u.find_spec('mlflow') and u.find_spec('psutil')))"
_LISTED = re.compile(r"^[^#\n]*(?<![\w.-])psutil(?![\w.-])", re.MULTILINE | re.IGNORECASE)


def switch_on(manager: str, environment_files: Iterable[str]) -> None:
    """Set MLflow's variable for what this process starts, unless somebody has set it, to whatever.

    Args:
        manager: of the project's environment, as MLflow calls it.
        environment_files: what the environment is made from, if there are such files.
    """
    if VARIABLE in os.environ:
        return
    if manager == "local":
        there = subprocess.run(["python", "-c", _FIND], capture_output=True, timeout=60).returncode == 0
    else:
        there = any(_LISTED.search(_content(file)) for file in environment_files)
    if there:
        os.environ[VARIABLE] = "true"


def _content(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as content:
            return content.read(1 << 20)
    except OSError:
        return ""
