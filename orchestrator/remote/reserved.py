"""Names of variables that a training cannot be given: a shell, the loader of programs, MLflow or we go by them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_SHELL = frozenset(
    {"_", "BASHOPTS", "BASHPID", "CDPATH", "DIRSTACK", "ENV", "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "EXECIGNORE"}
    | {"FUNCNAME", "GLOBIGNORE", "GROUPS", "HISTCMD", "IFS", "LINENO", "OLDPWD", "OPTARG", "OPTERR", "OPTIND"}
    | {"PIPESTATUS", "POSIXLY_CORRECT", "PPID", "PROMPT_COMMAND", "PS1", "PS2", "PS3", "PS4", "PWD", "RANDOM", "REPLY"}
    | {"SECONDS", "SHELL", "SHELLOPTS", "SHLVL", "SRANDOM", "TMOUT", "UID"}
)
"""Read-only in one shell or another, or something that it acts upon.

https://www.gnu.org/software/bash/manual/html_node/Bash-Variables.html
"""

_OTHERS = {
    "LD_PRELOAD": "the loader acts upon it in every program, ours too",
    "LD_AUDIT": "the loader acts upon it in every program, ours too",
    "PYTHONHOME": "no other Python on the instance starts with it",
    "MLFLOW_RUN_ID": "the training fills the run that we create",
    "MLFLOW_EXPERIMENT_NAME": "MLflow refuses a name beside MLFLOW_EXPERIMENT_ID",
}

_ASSIGNED = re.compile(
    r"(?:^|[\s;&|(]|\bexport )([a-z_][a-z0-9_]*)=|\bfor ([a-z_][a-z0-9_]*) in\b|\bread -r ([a-z_ ]+)"
)


def reserved(name: str) -> str | None:
    """Why a training cannot be given a variable of this name; None: it can."""
    if name in _SHELL or name.startswith("BASH_"):
        return "the instance's shell acts upon it"
    if name in _OTHERS:
        return _OTHERS[name]
    if name.upper().startswith("ORCHESTRATOR_"):
        return "the orchestrator's own variables are called so"
    if name in _supervisors_own():
        return "the script that runs the training uses it itself"
    return None


@functools.cache
def _supervisors_own() -> frozenset[str]:
    """The variables of the supervisor, in small letters all of them."""
    script = (Path(__file__).parent / "supervisor.sh").read_text(encoding="utf-8")
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("#"))
    return frozenset(name for found in _ASSIGNED.findall(code) for part in found for name in part.split())
