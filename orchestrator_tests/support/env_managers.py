"""The environment managers that `mlflow run` knows, as an instance has them; for the tests that really run them.

uv is the real one, and so are venv and pip. Two programs cannot be had from a package index, and stand-ins of a few
lines take their places: pyenv, of which MLflow wants the interpreter only, and conda.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator_sandbox.ec2.host_config import CERTIFICATES

PYTHON = platform.python_version()

PYENV = """#!/bin/sh
case "$*" in
  "install --list") echo "  {version}" ;;
  "install --skip-existing {version}") ;;
  root) echo "{root}" ;;
  *) echo "pyenv: no such interpreter here: $*" >&2; exit 2 ;;
esac
"""

CONDA = """#!{python}
import json, pathlib, subprocess, sys, yaml
home = pathlib.Path({home!r})
match sys.argv[1:]:
    case ["--help"]:
        print("usage: conda")
    case ["env", "list", "--json"]:
        print(json.dumps({{"envs": [str(place) for place in home.glob("envs/*")]}}))
    case ["env", "create", "-n", name, "--file", file]:
        [pip] = [part["pip"] for part in yaml.safe_load(open(file))["dependencies"] if isinstance(part, dict)]
        place = home / "envs" / name
        subprocess.run([{base!r}, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", *pip], check=True)
    case other:
        sys.exit(f"conda: cannot {{other}}")
"""

CONDA_SH = """conda() {{
  [ "$1" = activate ] || return 2
  \\. "{home}/envs/$2/bin/activate"
}}
"""


@dataclass(frozen=True)
class Managers:
    """Where the managers are, and how they are told of it.

    Attributes:
        path: folders for the instance's PATH.
        variables: for the training, besides PATH.
    """

    path: str
    variables: dict[str, str]

    @classmethod
    def make(cls, directory: Path) -> Managers:
        """Put the stand-ins into a directory, which also gets the environments that are made."""
        interpreter = Path(sys.base_prefix) / "bin" / "python3"
        bin_, conda, pyenv = directory / "bin", directory / "conda", directory / "pyenv"
        for folder in (bin_, conda / "bin", conda / "etc" / "profile.d", pyenv / "versions" / PYTHON / "bin"):
            folder.mkdir(parents=True)
        for place in (pyenv / "versions" / PYTHON / "bin" / "python", bin_ / f"python{PYTHON.rpartition('.')[0]}"):
            place.symlink_to(interpreter)
        _program(bin_ / "pyenv", PYENV.format(version=PYTHON, root=pyenv))
        _program(conda / "bin" / "conda", CONDA.format(python=sys.executable, home=str(conda), base=str(interpreter)))
        (conda / "etc" / "profile.d" / "conda.sh").write_text(CONDA_SH.format(home=conda))
        variables = {
            **package_index(),
            "MLFLOW_CONDA_HOME": str(conda),
            "MLFLOW_ENV_ROOT": str(directory / "envs"),
            "UV_PYTHON_DOWNLOADS": "never",
        }
        return cls(path=f"{bin_}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", variables=variables)


def package_index() -> dict[str, str]:
    """How pip and uv find packages here: what our environment and pip's own configuration say of it."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
    ours |= {name: os.environ[name] for name in CERTIFICATES if name in os.environ}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, timeout=60
    )
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        scope, _, option = name.partition(".")
        if scope in ("global", "install"):
            ours.setdefault(f"PIP_{option.upper().replace('-', '_')}", value.strip("'\""))
    if "PIP_INDEX_URL" in ours and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & ours.keys():
        ours["UV_DEFAULT_INDEX"] = ours["PIP_INDEX_URL"]
    return ours


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
