"""The sentence of a red training: the line that says why, what to do, and no noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pipeline.training.cause import KNOWN, SHOWN_LINES, cause_of_failure, shown

CROSS = "\N{MULTIPLICATION SIGN}"

MLFLOW_FAILED = "2026/11/26 10:00:00 ERROR mlflow.cli: === Run (ID '43bf2a') failed ==="

MLFLOW_FRAMES = """\
Traceback (most recent call last):
  File "/usr/local/bin/mlflow", line 8, in <module>
    sys.exit(cli())
             ^^^^^
  File "/usr/local/lib/python3.11/site-packages/click/core.py", line 1161, in __call__
    return self.main(*args, **kwargs)
  File "/usr/local/lib/python3.11/site-packages/mlflow/cli/__init__.py", line 300, in run
    projects.run(
  File "/usr/local/lib/python3.11/site-packages/mlflow/utils/process.py", line 152, in _exec_cmd
    raise ShellCommandException.from_completed_process(comp_process)
mlflow.utils.process.ShellCommandException: Non-zero exit code: 2
Command: ['bash', '-c', 'uv venv']"""

SCRIPT_FRAMES = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    run()'


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (f"epoch 1\n{SCRIPT_FRAMES}\nAssertionError", "AssertionError"),
        (f"{SCRIPT_FRAMES}\nKeyboardInterrupt", "KeyboardInterrupt"),
        (f"{SCRIPT_FRAMES}\nStopIteration", "StopIteration"),
        (
            f"{SCRIPT_FRAMES}\nbotocore.errorfactory.NoSuchBucket: it is gone",
            "botocore.errorfactory.NoSuchBucket: it is gone",
        ),
        (f"{SCRIPT_FRAMES}\nrequests.exceptions.ReadTimeout: 30 s", "requests.exceptions.ReadTimeout: 30 s"),
        (f"{SCRIPT_FRAMES}\nmy.own.Diverged: loss is nan", "my.own.Diverged: loss is nan"),
        ("ValueError: bad data", "ValueError: bad data"),
        ("bash: line 1: python9: command not found", "bash: line 1: python9: command not found"),
        ("sh: 1: rscript: not found", "sh: 1: rscript: not found"),
        ("bash: ./train.sh: Permission denied", "bash: ./train.sh: Permission denied"),
        (
            f"usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --beta 3\n{MLFLOW_FAILED}",
            "train.py: error: unrecognized arguments: --beta 3",
        ),
        (
            f"usage: train [-h]\n__main__.py: error: argument --lr: invalid float value: 'x'\n{MLFLOW_FAILED}",
            "__main__.py: error: argument --lr: invalid float value: 'x'",
        ),
        ("src/lda.c:10:5: error: unknown type name 'flot'", "src/lda.c:10:5: error: unknown type name 'flot'"),
        (
            f"ERROR: Cannot install -r requirements.txt (line 2) and numpy==1.20 because these package versions have "
            "conflicting dependencies.\n\nThe conflict is caused by:\n    The user requested numpy==1.20\n\n"
            "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/\n"
            f"{MLFLOW_FRAMES}",
            "ERROR: Cannot install -r requirements.txt (line 2) and numpy==1.20 because these package versions have "
            "conflicting dependencies.",
        ),
        (
            "python: can't open file '/x/tarin.py': [Errno 2] No such file or directory",
            "python: can't open file '/x/tarin.py': [Errno 2] No such file or directory",
        ),
        (
            "run.sh: line 2: 17 Segmentation fault python train.py",
            "run.sh: line 2: 17 Segmentation fault python train.py",
        ),
        (
            f"error: failed to download Python-3.11.15.tar.xz\n{MLFLOW_FRAMES}",
            "error: failed to download Python-3.11.15.tar.xz",
        ),
        (
            "error: Failed to fetch: `https://example.com/x/`\n  Caused by: operation timed out\n" + MLFLOW_FRAMES,
            "error: Failed to fetch: `https://example.com/x/`: Caused by: operation timed out",
        ),
        (
            f"ERROR: No matching distribution found for torch==9\n{MLFLOW_FRAMES}",
            "ERROR: No matching distribution found for torch==9",
        ),
        (
            f"  {CROSS} No solution found when resolving dependencies:\n{MLFLOW_FRAMES}",
            f"{CROSS} No solution found when resolving dependencies:",
        ),
        (
            "docker: Error response from daemon: manifest unknown.\nSee 'docker run --help'.",
            "docker: Error response from daemon: manifest unknown.",
        ),
        ("Unable to find image 'true:latest' locally", "Unable to find image 'true:latest' locally"),
        (MLFLOW_FRAMES, "mlflow.utils.process.ShellCommandException: Non-zero exit code: 2"),
    ],
)
def test_the_line_that_says_why_is_found(output: str, line: str) -> None:
    lines = f"{output}\n{MLFLOW_FAILED}\n".splitlines()
    assert cause_of_failure(lines).line == line


@pytest.mark.parametrize("output", ["", "epoch 1\nepoch 2", "Done", "Loss: 0.5", f"\n{MLFLOW_FAILED}"])
def test_no_line_is_made_a_cause_that_is_none(output: str) -> None:
    assert str(cause_of_failure(f"{output}\n{MLFLOW_FAILED}".splitlines())) == ""


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        (
            "mlflow.exceptions.MlflowException: Cannot start run with ID 1f because active experiment ID does not "
            "match environment run ID. Make sure --experiment-name or --experiment-id matches",
            "the script chooses an experiment of its own: set MLFLOW_EXPERIMENT_ID",
        ),
        (
            "mlflow.exceptions.ExecutionException: Unable to checkout version '1a' of git repo x- please ensure that "
            "the version exists in the repo. Error: Cmd('git') failed due to: exit code(128)\n  cmdline: git fetch -v\n"
            "  stderr: 'fatal: Could not read from remote repository.'",
            "Git has no access",
        ),
        ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", "Git has no access"),
        ("  stderr: 'fatal: remote error: upload-pack: not our ref 1111'", "does not hand out this commit"),
        (f"{SCRIPT_FRAMES}\nModuleNotFoundError: No module named 'xgboost'", "add xgboost to python_env.yaml"),
        ("/usr/bin/python: No module named mlflow.cli", "add mlflow.cli to"),
        ("run.sh: line 1:  8994 Killed                  python train.py", "choose a larger INSTANCE_TYPE"),
        (f"{SCRIPT_FRAMES}\nMemoryError", "choose a larger INSTANCE_TYPE"),
        (
            f"{SCRIPT_FRAMES}\nRuntimeError: DataLoader worker (pid 93) is killed by signal: Bus error. It is possible "
            "that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
            'MLPROJECT_DOCKER_ARGS={"shm-size": "8g"}',
        ),
        (
            f"{SCRIPT_FRAMES}\ntorch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "use smaller batches",
        ),
        (f"{SCRIPT_FRAMES}\nOSError: [Errno 28] No space left on device: 'model.pkl'", "raise ROOT_VOLUME_GB"),
        (
            f"{SCRIPT_FRAMES}\nbotocore.exceptions.NoCredentialsError: Unable to locate credentials",
            "set INSTANCE_PROFILE",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'None'", "needs pyenv"),
        ("uv: not found", "there is no uv"),
        (
            "mlflow.exceptions.ExecutionException: Ran `docker info` to ensure Docker daemon is running but failed\n"
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "add it to the group docker",
        ),
        (
            "error: Failed to fetch\n  Caused by: invalid peer certificate: UnknownIssuer",
            "a certificate is not trusted",
        ),
        ("requests.exceptions.ConnectionError: [Errno -2] Name or service not known", "check its security group"),
    ],
)
def test_what_people_meet_often_comes_with_what_to_do(output: str, advice: str) -> None:
    cause = cause_of_failure(f"{output}\n{MLFLOW_FAILED}".splitlines())
    assert advice in (cause.advice or "")


@pytest.mark.parametrize("words", ["column killed is no number", "3 of 9 jobs were killed by the budget"])
def test_a_word_of_the_script_is_no_lack_of_memory(words: str) -> None:
    assert cause_of_failure(f"{SCRIPT_FRAMES}\nValueError: {words}".splitlines()).advice is None


def test_frames_of_mlflow_and_click_are_not_shown() -> None:
    output = [*(f"step {n}" for n in range(30)), *MLFLOW_FRAMES.splitlines(), MLFLOW_FAILED]
    lines = shown(output)
    assert len(lines) == SHOWN_LINES
    assert "step 29" in lines
    assert not any("site-packages" in line or "sys.exit" in line for line in lines)
    own = shown(SCRIPT_FRAMES.splitlines())
    assert own == SCRIPT_FRAMES.splitlines()


def test_each_known_failure_can_be_told() -> None:
    for known in KNOWN:
        assert known.advice.format("x")


@given(st.lists(st.text()))
def test_any_output_is_read(lines: list[str]) -> None:
    cause = cause_of_failure(lines)
    assert cause.line is None or any(line.strip() in cause.line for line in lines)
    assert len(shown(lines)) <= SHOWN_LINES


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "Git cannot fetch 1f2e of https://git.example/p: fatal: could not read Username for 'https://git.example'",
            "could not read Username for 'https://git.example'); Git has no access to the repository on the instance",
        ),
        (
            "there is no 1f2e in git://x/p, in none of its branches and tags (fatal: remote error: not our ref 1f2e)",
            "; the repository does not hand out this commit (any more)",
        ),
        (
            "/tmp has 9 MB left on its disk: raise ROOT_VOLUME_GB",
            " (/tmp has 9 MB left on its disk: raise ROOT_VOLUME_GB)",
        ),
        (
            "MLflow at arn:aws:x cannot be asked without the package sagemaker-mlflow",
            "; install sagemaker-mlflow beside mlflow in AMI_ID, and add it to the project's environment",
        ),
        (
            "MLflow at https://m wants signed requests, and this machine has no AWS credentials",
            "; set INSTANCE_PROFILE to one whose role may ask it",
        ),
        ("git: not found on the training's PATH (/bin)", "; there is no Git on the instance"),
    ],
)
def test_what_was_found_out_before_the_training_is_the_cause(fault: str, sentence: str) -> None:
    output = ["error: an older one", f"orchestrator: the training cannot begin: {fault}", ""]
    cause = str(cause_of_failure(output))
    assert sentence in cause
    assert "older" not in cause
    assert "cannot begin" not in cause
