"""Loaded by Python itself in the process of `mlflow run`: FINISHED is not written over FAILED or KILLED.

`mlflow run` means to look before it writes, and compares text with numbers, so it never sees that a run has ended
(`_maybe_set_run_terminated`, the same in 2.x):
https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/projects/__init__.py
Python imports a module of this name, first on its path, wherever the program `mlflow` is a shim for. Needs Python 3.8.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_PROJECTS = "mlflow.projects"


def _leave_the_path() -> None:
    """Let `import sitecustomize` and the programs that are started from now on find what they would without us."""
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != _HERE]


def _leave_the_environment() -> None:
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if places[0] == _HERE:
        if len(places) > 1:
            os.environ["PYTHONPATH"] = os.pathsep.join(places[1:])
        else:
            del os.environ["PYTHONPATH"]


class _WhenImported(importlib.abc.MetaPathFinder):
    """Runs `_guard` on `mlflow.projects` right after it was imported, whoever imports it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _PROJECTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_guard(module: ModuleType) -> None:
            execute(module)
            _guard(module)

        spec.loader.exec_module = execute_and_guard  # type: ignore[method-assign]
        return spec


def _guard(projects: Any) -> None:
    """Have `mlflow run` look at the run's status before it writes one."""
    # From here on this process starts the project's own commands, which are none of our business.
    _leave_the_environment()
    write = getattr(projects, "_maybe_set_run_terminated", None)
    if write is None:
        return

    def look_and_write(active_run: Any, status: str) -> None:
        found = active_run and projects.tracking.MlflowClient().get_run(active_run.info.run_id).info.status
        if found not in ("FAILED", "KILLED"):
            write(active_run, status)
        elif status == "FINISHED":
            raise projects.ExecutionException(
                f"the command exited 0, but the script had ended its MLflow run as {found}"
            )

    projects._maybe_set_run_terminated = look_and_write
    sign = os.environ.get("ORCHESTRATOR_TRAINING")
    if sign:
        # Tells `pipes.bash`, below us, that somebody looks.
        with open(os.path.join(sign, "guarded"), "w"):
            pass


_leave_the_path()
sys.modules.pop("sitecustomize", None)
if "MLFLOW_RUN_ID" in os.environ:
    # Below a `mlflow run` that did not load us (`python -I`): this is the project's own process.
    _leave_the_environment()
else:
    sys.meta_path.insert(0, _WhenImported())
with contextlib.suppress(ImportError):
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - the machine's own
