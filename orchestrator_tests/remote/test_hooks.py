"""A command of a project that failed ends non-zero, however it hides that; one that succeeded stays green."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.hooked import HOOKS, SCRIPTS, mlflow_run, mlproject
from orchestrator_tests.support.mlflow_client import client

FAILS = f"{sys.executable} -c 'raise SystemExit(3)'"


def bash(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `mlflow run` does, below our hook."""
    environment = {**os.environ, "MLFLOW_RUN_ID": "1", "BASH_ENV": str(HOOKS / "pipes.bash"), **variables}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        f"{FAILS} 2>&1 | tee /dev/null",
        f"{FAILS} |& cat",
        f"{FAILS} |\n  cat |\n  cat",
        f"cat /dev/null | {FAILS} | cat",
        f"{FAILS} | tee /dev/null && echo evaluated",
        f"cd / && {FAILS} | tee /dev/null && echo a && echo b",
        f"{{ {FAILS} | cat; }} && echo evaluated",
        f"for fold in 1; do {FAILS} | cat; done",
        f"set -eux; {FAILS} | while read line; do echo $line; done",
        f"time {FAILS} | cat",
    ],
)
def test_a_failure_that_the_status_of_a_pipe_hides_is_the_status_of_the_command(command: str) -> None:
    done = bash(command)
    assert done.returncode == 3
    assert "failed with status 3, which the pipe's own status hides" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "seq 1000000 | head -n 1",
        "yes | head -n 1 >/dev/null && echo trained",
        "cat /dev/zero | head -c 9 | wc -c && echo trained",
    ],
)
def test_a_part_of_a_pipe_that_nobody_reads_on_from_is_no_failure(command: str) -> None:
    done = bash(command)
    assert done.returncode == 0
    assert "was ended by SIGPIPE" in done.stderr
    assert "trained" in done.stdout or "&&" not in command


@pytest.mark.parametrize(
    "command",
    [
        "true",
        "exec true",
        "true | true",
        "set -euo pipefail; true | true; true",
        "no-such-gpu-tool 2>&1 | head -n 5; true",
        "if no-such-gpu-tool 2>/dev/null | grep -q T4; then exit 9; else echo cpu; fi; true",
        "false | false || echo handled",
        "count=$(false | wc -l) && [ $count = 0 ]",
        'mkdir -p "$HOME/made" && cd $_ && [ "$PWD" = "$HOME/made" ]',
        'false | true; [ "${PIPESTATUS[*]}" = "1 0" ]',
        "false; [ $? = 1 ]",
        'set -- a b; echo $1 | grep -q a && [ "$2" = b ]',
        "echo 'a \" that is alone && |' | cat",
        "bash -c 'false | cat'",
        "trap 'echo cleaned up' EXIT; true | true",
    ],
)
def test_a_command_that_succeeded_is_left_alone(command: str, tmp_path: Path) -> None:
    done = bash(command, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("false", 1), ("kill -9 $$", -9), ("syntax error (", 2)]
)
def test_a_command_that_fails_by_itself_keeps_its_status(command: str, status: int) -> None:
    assert bash(command).returncode == status


def test_the_login_s_own_bash_env_is_loaded_and_handed_on(tmp_path: Path) -> None:
    own = tmp_path / "own.bash"
    own.write_text("greeting=hello\n")
    done = bash('echo "$greeting $BASH_ENV ${ORCHESTRATOR_BASH_ENV-gone}"', ORCHESTRATOR_BASH_ENV=str(own))
    assert done.stdout == f"hello {own} gone\n"


def test_what_the_command_starts_is_none_of_the_hook_s_business() -> None:
    assert bash("env").stdout.count("BASH_ENV") == 0


# What MLflow says of the run, asked by a program in mlflow's place.
ANSWER = '{"info": {"status": "%s", "end_time": %s, "run_id": "1"}, "data": {"tags": {"end_time": 1}}}'


def bash_of_a_run(
    command: str, directory: Path, status: str, *, ended: str = "$(date +%s)999"
) -> subprocess.CompletedProcess[str]:
    """As `bash`, with a run that a part of the command ended just now, or at another time."""
    mlflow = directory / "mlflow"
    mlflow.write_text(f"#!/bin/sh\necho asked >>{directory}/asked\ncat <<END\n{ANSWER % (status, ended)}\nEND\n")
    mlflow.chmod(0o755)
    (directory / "guarded").touch()
    return bash(command, ORCHESTRATOR_TRAINING=f"{directory}/", ORCHESTRATOR_MLFLOW=str(mlflow))


@pytest.mark.parametrize(
    "command",
    [
        f"{FAILS}; echo evaluated",
        f"{FAILS}\necho evaluated",
        f"cd / && {FAILS}; echo a && echo evaluated",
        f"{FAILS} 2>&1 | tee /dev/null; echo evaluated",
        f"echo a; {FAILS}; if true; then echo evaluated; fi",
        f"{FAILS}; for fold in 1 2; do echo $fold; done; echo evaluated",
    ],
)
@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_a_failing_part_ended_as_failed_is_not_made_good_by_the_next_part(
    command: str, status: str, tmp_path: Path
) -> None:
    done = bash_of_a_run(command, tmp_path, status)
    assert done.returncode == 3, done.stderr
    assert "evaluated" in done.stdout
    assert "ended with status 3 and left its MLflow run as FAILED or KILLED" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        f"{FAILS} || echo on the CPU, then",
        f"cd / && {FAILS} || true; echo evaluated",
        f"if {FAILS}; then exit 9; else echo on the CPU, then; fi; echo evaluated",
        f"if {FAILS}; then exit 9; fi; for fold in 1 2; do echo $fold; done",
        f"until {FAILS} || true; do echo again; done; echo evaluated",
        f"for device in gpu cpu; do test $device = cpu && break; {FAILS}; done; echo evaluated",
        f"for device in gpu cpu; do {FAILS} && break; done; echo evaluated",
        f"! {FAILS}; echo evaluated",
        f"{FAILS} & wait; echo evaluated",
        f"( {FAILS}; echo on the CPU, then ); echo evaluated",
        f"try() {{ {FAILS}; echo on the CPU, then; }}; try; echo evaluated",
        f"{FAILS} || echo again; {FAILS} || true; {FAILS} && true; echo evaluated",
        f"{FAILS} || true; if false; then\n{FAILS}\nfi; echo evaluated",
        "echo evaluated",
    ],
)
def test_a_failure_that_the_command_reckons_with_stays_its_own_business(command: str, tmp_path: Path) -> None:
    done = bash_of_a_run(command, tmp_path, "FAILED")
    assert done.returncode == 0, done.stderr
    assert "orchestrator:" not in done.stderr


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_a_failing_part_that_left_the_run_alone_is_ignored_as_the_command_says(status: str, tmp_path: Path) -> None:
    done = bash_of_a_run(f"{FAILS}; {FAILS} | cat; echo evaluated", tmp_path, status)
    assert done.returncode == 0, done.stderr
    assert "orchestrator:" not in done.stderr


@pytest.mark.parametrize("ended", ["1700000000000", "null"])
def test_a_run_that_an_earlier_part_ended_says_nothing_of_a_later_one(ended: str, tmp_path: Path) -> None:
    command = f"false || echo on the CPU, then; {FAILS}; echo evaluated"
    done = bash_of_a_run(command, tmp_path, "FAILED", ended=ended)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").exists()
    assert "orchestrator:" not in done.stderr


def test_mlflow_is_asked_only_where_a_part_failed(tmp_path: Path) -> None:
    assert bash_of_a_run("true; true | true; [ 1 = 1 ]; echo trained", tmp_path, "FAILED").returncode == 0
    assert not (tmp_path / "asked").exists()


# ---- the other half: `mlflow run` looks at what the script made of its run


@pytest.mark.services
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_run_that_the_script_ended_as_failed_is_a_failure_and_stays_what_it_is(
    mlflow_server: MlflowServer, tmp_path: Path, script: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    status, output, held = mlflow_run(mlflow_server, mlproject(project, script), home=tmp_path)
    assert status != 0
    assert "the script had ended its MLflow run" in output
    assert held == ("KILLED" if "KILLED" in script else "FAILED")


@pytest.mark.services
def test_a_first_part_that_failed_inside_its_run_is_not_made_good_by_a_second_one(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    project = mlproject(
        tmp_path, "with mlflow.start_run():\n    raise ValueError('no')\n", "python train.py; echo evaluated"
    )
    status, output, held = mlflow_run(mlflow_server, project, home=tmp_path)
    assert (status != 0, held) == (True, "FAILED")
    assert "evaluated" in output


@pytest.mark.services
def test_a_first_part_that_failed_inside_its_run_is_not_made_good_by_one_that_takes_the_run_up_again(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    script = "with mlflow.start_run():\n    mlflow.log_metric('a', 1)\n    raise ValueError('no')\n"
    project = mlproject(tmp_path, script, "python train.py; python evaluate.py")
    (project / "evaluate.py").write_text("import mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('b', 1)\n")
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path)
    assert status != 0
    assert "left its MLflow run as FAILED or KILLED" in output


@pytest.mark.services
def test_a_python_that_loads_no_hook_is_asked_for_by_the_other_one(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    program = tmp_path / "isolated"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -m mlflow "$@"\n')
    program.chmod(0o755)
    project = mlproject(tmp_path, SCRIPTS["swallows"])
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path, program=str(program))
    assert status != 0
    assert "the script had ended its MLflow run" in output


@pytest.mark.services
def test_a_training_that_went_well_is_finished_and_finds_nothing_of_the_hooks(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    script = """
        assert not {"PYTHONPATH", "BASH_ENV"} & set(os.environ), os.environ
        assert not any("hooks" in place for place in sys.path), sys.path
        with mlflow.start_run():
            mlflow.log_metric("accuracy", 1.0)
        """
    project = mlproject(tmp_path, script)
    status, output, held = mlflow_run(mlflow_server, project, home=tmp_path)
    assert (status, held) == (0, "FINISHED"), output
    assert "sitecustomize" not in output
    assert (tmp_path / "run" / "guarded").exists()


@pytest.mark.services
def test_a_training_that_never_asks_mlflow_is_finished(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    status, output, held = mlflow_run(mlflow_server, mlproject(tmp_path, "print('no call of mlflow')"), home=tmp_path)
    assert (status, held) == (0, "FINISHED"), output


# ---- what `mlflow run` records of the runs that it creates itself

DECLARED = """
name: p
entry_points:
  main:
    parameters:
      alpha: {type: float, default: 0.50}
      beta: {type: string, default: "it is, beta"}
      data: {type: uri, default: "s3://churn/data.csv"}
    command: "python train.py"
"""


@pytest.mark.services
def test_the_defaults_of_the_entry_point_and_the_user_are_recorded_without_being_in_the_scripts_way(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    project = mlproject(tmp_path, "with mlflow.start_run():\n    mlflow.log_param('alpha', 0.5)\n")
    (project / "MLproject").write_text(DECLARED)
    plain = {**os.environ, **mlflow_server.env()}
    argv = [str(Path(sys.executable).with_name("mlflow")), "run", str(project), "--env-manager", "local"]
    # In plain MLflow, "0.50" would have met the script's 0.5.
    argv += ["-P", "alpha=0.5", "--experiment-id", "0"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(argv, env={**plain, "PATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = client(mlflow_server.url).find_run("0", tags={})
    status, output, held = mlflow_run(mlflow_server, project, home=tmp_path)
    got = client(mlflow_server.url).find_run("0", tags={})
    assert (status, held) == (0, "FINISHED"), output
    assert wanted is not None
    assert got is not None
    assert got.id != wanted.id
    assert got.params == wanted.params
    assert set(got.params) == {"alpha", "beta", "data"}
    assert got.tags["mlflow.user"] == wanted.tags["mlflow.user"]
    assert "orchestrator:" not in output


@pytest.mark.services
def test_a_script_in_the_place_of_an_entry_point_has_no_defaults_and_runs_as_before(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    project = mlproject(tmp_path, "print('no call of mlflow')")
    (project / "MLproject").write_text("name: p\n")
    status, output, held = mlflow_run(mlflow_server, project, home=tmp_path, arguments=["-e", "train.py", "-P", "a=1"])
    got = client(mlflow_server.url).find_run("0", tags={})
    assert (status, held) == (0, "FINISHED"), output
    assert got is not None
    assert (got.params, "mlflow.user" in got.tags) == ({}, True)
    assert "orchestrator:" not in output


@pytest.mark.services
@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ('["MLFLOW_TRACKING_URI", "KEY_A", "KEY_B", ["KEY_C", "3"]]', ["KEY_A", "KEY_B"]),
        ('["KEY_B", "HOME"]', ["KEY_B"]),
    ],
)
def test_variables_that_a_docker_env_asks_for_in_vain_are_named_before_anything_is_built(
    mlflow_server: MlflowServer, tmp_path: Path, asked: str, missing: list[str]
) -> None:
    project = mlproject(tmp_path, "print('never')")
    with (project / "MLproject").open("a") as file:
        file.write(f"docker_env: {{image: no-such-image, environment: {asked}}}\n")
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path)
    assert status != 0
    sentence = f"MLproject asks for {', '.join(missing)} (docker_env: environment), which the training does not have"
    assert sentence in output
    assert "TRAINING_ENV" in output
    assert "docker info" not in output


# ---- Git LFS

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
DATA = "a,b\n1,2\n"


def with_large_file(directory: Path, *, attributes: str = "*.csv filter=lfs diff=lfs merge=lfs -text\n") -> GitRemote:
    """A repository whose data.csv is a pointer, and whose script trains on nothing but the data itself."""
    source, store = directory / "source", directory / "store"
    source.mkdir()
    oid = hashlib.sha256(DATA.encode()).hexdigest()
    (store / "lfs" / "objects" / oid[:2] / oid[2:4]).mkdir(parents=True)
    (store / "lfs" / "objects" / oid[:2] / oid[2:4] / oid).write_text(DATA)
    subprocess.run(["git", "init", "--quiet", "--bare", str(store)], check=True)
    mlproject(source, f"print(open('data.csv').read())\nassert open('data.csv').read() == {DATA!r}")
    (source / "data.csv").write_text(POINTER.format(oid=oid, size=len(DATA)))
    (source / ".gitattributes").write_text(attributes)
    (source / ".lfsconfig").write_text(f"[lfs]\n\turl = file://{store}\n")
    return GitRemote(directory / "git", source)


def programs_but(name: str, directory: Path) -> str:
    """A PATH that has all programs of this machine but one."""
    directory.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if program.name != name and not (directory / program.name).exists():
                (directory / program.name).symlink_to(program)
    return str(directory)


@pytest.mark.services
def test_a_pointer_of_git_lfs_is_not_trained_where_git_lfs_is_missing(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with with_large_file(tmp_path) as remote:
        monkeypatch.setenv("PATH", programs_but("git-lfs", tmp_path / "bin"))
        status, output, held = mlflow_run(mlflow_server, remote.url, home=tmp_path)
    assert status != 0
    assert "keeps 1 files in Git LFS, such as data.csv, and there is no git-lfs on this machine" in output
    assert held == "RUNNING"  # nothing began; the attempt closes it


@pytest.mark.services
def test_where_git_lfs_is_there_the_file_itself_is_trained(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    with with_large_file(tmp_path) as remote:
        status, output, held = mlflow_run(mlflow_server, remote.url, home=tmp_path)
    assert (status, held) == (0, "FINISHED"), output


@pytest.mark.services
def test_a_large_file_that_cannot_be_fetched_is_a_failure(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    with with_large_file(tmp_path) as remote:
        shutil.rmtree(tmp_path / "store" / "lfs")
        status, output, _ = mlflow_run(mlflow_server, remote.url, home=tmp_path)
    assert status != 0
    assert "`git lfs pull` failed" in output


def test_the_machine_s_own_sitecustomize_is_loaded_as_well(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.own = 'the machine s own'\n")
    environment = {**os.environ, "PYTHONPATH": f"{HOOKS}{os.pathsep}{tmp_path}"}
    argv = [sys.executable, "-c", "print(own)"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "the machine s own\n", done.stderr


def test_a_machine_without_a_sitecustomize_of_its_own_hears_no_complaint(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOOKS)}
    argv = [sys.executable, "-c", "print('hello')"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("hello\n", "")
