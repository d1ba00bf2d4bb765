"""Loaded by Python itself in the process of `mlflow run`, so that a training is what it says.

FINISHED is not written over FAILED or KILLED, and the run gets what `mlflow run` does not record of a run that it is
handed: the entry point's default parameters, and the user. What it needs is looked at first (`preflight.py`), and the
project is fetched by us (`checkout.py`), so that a commit comes from any Git server, and whole. Models are loaded once
where they were made (`model_check.py`).

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
import tempfile
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_PROJECTS = "mlflow.projects"


def _sibling(name: str) -> Any:
    """A file beside this one, as a module that nobody else can import."""
    spec: Any = importlib.util.spec_from_file_location(f"_orchestrator_{name}", os.path.join(_HERE, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

    preflight = _sibling("preflight")
    given = _Given(projects, preflight)
    check = None
    with _never_failing("the model will not be loaded"):
        check = _sibling("model_check").of(projects)

    def look_and_write(active_run: Any, status: str) -> None:
        given.log_parameters(active_run)
        found = active_run and projects.tracking.MlflowClient().get_run(active_run.info.run_id).info.status
        if found not in ("FAILED", "KILLED"):
            write(active_run, status)
            if check and active_run and status == "FINISHED":
                with _never_failing("the model was not loaded"):
                    check.look(active_run.info.run_id)
        elif status == "FINISHED":
            raise projects.ExecutionException(
                f"the command exited 0, but the script had ended its MLflow run as {found}"
            )

    projects._maybe_set_run_terminated = look_and_write
    given.learn()
    if check:
        with _never_failing("the model will not be loaded"):
            check.learn(sys.modules["mlflow.projects.backend.local"])
    _fetch_ourselves(projects)
    _look_first(projects, preflight, given)
    sign = os.environ.get("ORCHESTRATOR_TRAINING")
    if sign:
        # Tells `pipes.bash`, below us, that somebody looks.
        with open(os.path.join(sign, "guarded"), "w"):
            pass


class _Given:
    """What the project and its entry point are given; MLflow says so of the runs that it creates itself only."""

    def __init__(self, projects: Any, preflight: Any) -> None:
        self._projects = projects
        self._preflight = preflight
        self._parameters: dict[str, str] = {}  # the defaults of the entry point
        self.manager: Any = None  # of the environment; None: MLflow chooses

    def learn(self) -> None:
        """See what `mlflow run` is about to run, before it builds an image or an environment for it."""
        local = sys.modules.get("mlflow.projects.backend.local")
        get_run = getattr(local, "get_or_create_run", None)
        if get_run is None:
            return

        def get_run_and_learn(run_id: Any, uri: Any, experiment_id: Any, work_dir: str, *rest: Any) -> Any:
            run = get_run(run_id, uri, experiment_id, work_dir, *rest)
            if run_id is None:
                return run
            _, entry_point, parameters = rest
            project = self._projects.load_project(work_dir)
            self._require_variables(project)
            manager = self.manager or getattr(local, "_env_type_to_env_manager", str)(project.env_type)
            self._require_manager(project, local, manager)
            with _never_failing("MLflow's system metrics stay off"):
                _sibling("system_metrics").switch_on(manager, _environment_files(project))
            with _never_failing("MLflow's run lacks its user or parameters"):
                if "mlflow.user" not in run.data.tags:
                    user = self._projects.utils._get_user()
                    self._projects.tracking.MlflowClient().set_tag(run_id, "mlflow.user", user)
                known, other = project.get_entry_point(entry_point).compute_parameters(parameters, storage_dir=None)
                # Those that were given are recorded as they were written, and not as the shell gets them.
                self._parameters = {key: value for key, value in {**known, **other}.items() if key not in parameters}
            return run

        local.get_or_create_run = get_run_and_learn  # type: ignore[union-attr]

    def log_parameters(self, run: Any) -> None:
        """Log what the script did not: one that logs `alpha` as 0.5 must not meet our "0.50"."""
        if run is None or not self._parameters:
            return
        with _never_failing("MLflow's run lacks parameters"):
            client = self._projects.tracking.MlflowClient()
            logged = client.get_run(run.info.run_id).data.params
            for name, value in self._parameters.items():
                if name not in logged:
                    client.log_param(run.info.run_id, name, value)

    def _require_variables(self, project: Any) -> None:
        wanted = (project.docker_env or {}).get("environment") or []
        missing = [name for name in wanted if isinstance(name, str) and name not in os.environ]
        if missing:
            _refuse(
                f"MLproject asks for {', '.join(missing)} (docker_env: environment), which the training does not have: "
                f"name {'it' if len(missing) == 1 else 'them'} in TRAINING_ENV, as "
                + ",".join(f"{name}=YOUR_{name}" for name in missing)
                + " where the training is to have a value of its own"
            )

    def _require_manager(self, project: Any, local: Any, manager: Any) -> None:
        with _never_failing("the environment manager was not looked for"):
            environments = local._get_mlflow_virtualenv_root()
            fault = self._preflight.manager_fault(
                manager,
                in_container=bool(project.docker_env),
                conda=importlib.import_module("mlflow.utils.conda").get_conda_bin_executable("conda"),
                has_environments=os.path.isdir(environments) and bool(os.listdir(environments)),
            )
            _refuse(fault)


def _environment_files(project: Any) -> Any:
    file = project.env_config_path
    return [file, os.path.join(os.path.dirname(file), "requirements.txt")] if file else []


@contextlib.contextmanager
def _never_failing(loss: str) -> Any:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the training counts for more
        sys.stderr.write(f"orchestrator: {loss}: {error}\n")


def _fetch_ourselves(projects: Any) -> None:
    """Have each project that is fetched come from any Git server, and hold its large files."""
    fetch = getattr(projects.utils, "_fetch_git_repo", None)
    if fetch is None:
        return
    checkout = _sibling("checkout")

    def fetch_whole(uri: str, version: Any, dst_dir: str) -> None:
        if version is None or os.listdir(dst_dir):  # a folder of this machine, which may be a clone already
            fetch(uri, version, dst_dir)
        else:
            _refuse(checkout.fetch(uri, version, dst_dir))
        _refuse(checkout.complete(dst_dir))

    projects.utils._fetch_git_repo = fetch_whole


def _look_first(projects: Any, preflight: Any, given: _Given) -> None:
    """Have `mlflow run` begin with what it will need."""
    run = projects.run

    def look_and_run(*arguments: Any, **options: Any) -> Any:
        given.manager = options.get("env_manager")
        _refuse(preflight.disk_fault([tempfile.gettempdir(), os.path.expanduser("~")]))
        _refuse(preflight.index_fault())
        if options.get("run_id"):
            address = projects.tracking.get_tracking_uri()
            _refuse(preflight.mlflow_fault(projects.tracking.MlflowClient, options["run_id"], address))
        return run(*arguments, **options)

    projects.run = look_and_run


def _refuse(fault: str) -> None:
    """End `mlflow run` with one sentence, which `cause.py` takes for the cause; no fault: go on."""
    if fault:
        sys.stderr.write(f"orchestrator: the training cannot begin: {fault}\n")
        raise SystemExit(1)


_leave_the_path()
if "MLFLOW_RUN_ID" in os.environ:
    # Below a `mlflow run` that did not load us (`python -I`): this is the project's own process.
    _leave_the_environment()
else:
    sys.meta_path.insert(0, _WhenImported())
_ours = sys.modules.pop(__name__)
with contextlib.suppress(ImportError):
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - the machine's own
sys.modules.setdefault(__name__, _ours)
