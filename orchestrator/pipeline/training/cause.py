"""Why a training failed: the line of its output that says so, and what to do about it where that is known.

A new kind of failure is a line of `KNOWN`: what its output holds, and the advice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_LINES = 20
READ_LINES = 400
"""So many of the last lines are looked through: a reason stands above the traceback that it causes."""


@dataclass(frozen=True)
class KnownFailure:
    """What a failure looks like that people meet often, and what to do.

    Attributes:
        pattern: a regular expression that finds it in one line; its group 1, if any, fills `{}` of the advice.
        advice: one clause for the user.
        quote: whether the line itself is worth showing, too.
    """

    pattern: str
    advice: str
    quote: bool = True


KNOWN = (
    KnownFailure(
        r"MLflow at \S+ did not answer",
        "the instance has to reach it, too: check MLFLOW_TRACKING_URI_ON_INSTANCE, MLflow's security group, and a "
        "proxy between them (HTTPS_PROXY, NO_PROXY in TRAINING_ENV)",
    ),
    KnownFailure(
        r"MLflow at \S+ refuses the login",
        "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, or those that end in "
        "_ON_INSTANCE; of requests that AWS has signed, the permissions of INSTANCE_PROFILE's role",
    ),
    KnownFailure(
        r"refuses the client certificate of the training",
        "set MLFLOW_TRACKING_CLIENT_CERT_PATH, or MLFLOW_TRACKING_CLIENT_CERT_PATH_ON_INSTANCE, to one that it accepts",
    ),
    KnownFailure(
        r"cannot be asked without the package (\S+)",
        "install {} beside mlflow in AMI_ID, and add it to the project's environment, because both ask MLflow",
    ),
    KnownFailure(
        r"wants signed requests, and this machine has no AWS credentials",
        "set INSTANCE_PROFILE to one whose role may ask it",
    ),
    KnownFailure(
        r"No module named '?requests_auth_aws_sigv4",
        "MLFLOW_TRACKING_AWS_SIGV4 needs requests-auth-aws-sigv4 and boto3: add them to the project's environment",
    ),
    KnownFailure(
        r"got unsupported URI 'arn:",
        "SageMaker's managed MLflow needs sagemaker-mlflow: add it to the project's environment",
        quote=False,
    ),
    KnownFailure(
        r"MLflow at \S+ knows no run",
        "MLFLOW_TRACKING_URI_ON_INSTANCE leads to another server than MLFLOW_TRACKING_URI",
    ),
    KnownFailure(
        r"\bgit: (?:command )?not found|No such file or directory: 'git'",
        "there is no Git on the instance: install it in AMI_ID",
    ),
    KnownFailure(
        r"active experiment ID does not match environment run ID",
        # MLflow's own sentence names options of `mlflow run` that nobody here gives.
        "the script chooses an experiment of its own: set MLFLOW_EXPERIMENT_ID to that experiment's ID, or take "
        "set_experiment() out of the script",
        quote=False,
    ),
    KnownFailure(
        r"Specify only one of .?experiment-name.? or .?experiment-id",
        "the image sets MLFLOW_EXPERIMENT_NAME: take it out there, for the experiment is MLFLOW_EXPERIMENT_ID's",
        quote=False,
    ),
    KnownFailure(
        r"40[13] from \S+: PRIVATE_INDEX_USER\b",
        "correct PRIVATE_INDEX_USER and PRIVATE_INDEX_PASSWORD: a user or token that may read PRIVATE_INDEX_URL",
    ),
    KnownFailure(
        r"An index(?: URL)? \(\S+\) (?:returned a 40[13] \w+ error|could not be queried due to a lack of valid auth)",
        "the package index wants another login: PRIVATE_INDEX_USER and PRIVATE_INDEX_PASSWORD are for the host of "
        "PRIVATE_INDEX_URL only",
    ),
    KnownFailure(
        r"Could not find (\S+) among entry points",
        "set MLPROJECT_ENTRY_POINT to one that MLproject has, or to a script",
    ),
    KnownFailure(r"No value given for missing parameters", "give them in MLPROJECT_PARAMETERS"),
    KnownFailure(
        r"could not read (?:Username|Password) for|Permission denied \(publickey|Authentication failed for '"
        r"|fatal: Could not read from remote repository|HTTP Basic: Access denied",
        "Git has no access to the repository on the instance: give it a login there, by a .netrc, a credential helper "
        "or an SSH key in AMI_ID, or by GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0 and GIT_CONFIG_VALUE_0 in TRAINING_ENV",
    ),
    KnownFailure(
        r"Host key verification failed",
        "the image does not know the Git server's host key: add it to known_hosts there",
    ),
    KnownFailure(
        r"not our ref|couldn't find remote ref|unadvertised object|did not match any file\(s\) known to git"
        r"|reference is not a tree",
        "the repository does not hand out this commit (any more): was it merged by Jenkins, or its branch rewritten?",
    ),
    KnownFailure(
        r"No such file or directory: 'None'|pyenv: (?:command )?not found|Could not find the pyenv",
        "MLPROJECT_ENV_MANAGER=virtualenv, MLflow's default, needs pyenv on the instance: install it in AMI_ID, or set "
        "MLPROJECT_ENV_MANAGER to uv, conda or local",
    ),
    KnownFailure(
        r"Could not find Conda executable|conda: (?:command )?not found",
        "there is no conda on the instance: install it in AMI_ID, or set MLPROJECT_ENV_MANAGER to uv or local",
    ),
    KnownFailure(
        r"uv: (?:command )?not found|No such file or directory: 'uv'|Could not find .?uv",
        "there is no uv on the instance: install it in AMI_ID, or set MLPROJECT_ENV_MANAGER to another",
    ),
    KnownFailure(
        r"permission denied while trying to connect to the docker (?:daemon|api)",
        "the login may not use Docker: add it to the group docker in AMI_ID",
    ),
    KnownFailure(
        r"Could not find Docker executable|docker: (?:command )?not found", "there is no Docker in AMI_ID: install it"
    ),
    KnownFailure(
        r"Cannot connect to the Docker daemon", "Docker does not run on the instance: let AMI_ID start it at boot"
    ),
    KnownFailure(
        r"CUDA out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError|ResourceExhaustedError",
        "the GPU's memory is too small: use smaller batches, or an INSTANCE_TYPE with a larger GPU",
    ),
    KnownFailure(
        r"no CUDA-capable device|Found no NVIDIA driver|libcuda\.so|CUDA driver version is insufficient",
        "there is no usable GPU: choose an INSTANCE_TYPE with one, and an AMI_ID with its driver",
    ),
    KnownFailure(
        r"out of shared memory|insufficient shared memory",
        'a container has 64 MB of shared memory: set MLPROJECT_DOCKER_ARGS={{"shm-size": "8g"}}, or load data with '
        "fewer workers",
    ),
    KnownFailure(
        r"^MemoryError\b|numpy\.\S*ArrayMemoryError|\bstd::bad_alloc|Cannot allocate memory|(?:^|\s)(?-i:Killed)\b",
        "its memory is too small: choose a larger INSTANCE_TYPE",
    ),
    KnownFailure(r"No space left on device", "its disk is full: raise ROOT_VOLUME_GB"),
    KnownFailure(
        r"(?:ModuleNotFoundError: )?No module named '?([\w.]+)",
        "add {} to python_env.yaml, conda.yaml or the image",
    ),
    KnownFailure(
        r"NoCredentialsError|Unable to locate credentials",
        "the training has no AWS credentials: set INSTANCE_PROFILE, or name the variables in TRAINING_ENV",
    ),
    KnownFailure(
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|SSL certificate problem",
        "a certificate is not trusted on the instance: for MLflow set MLFLOW_TRACKING_SERVER_CERT_PATH, else add the "
        "CA to AMI_ID",
    ),
    KnownFailure(
        r"Temporary failure in name resolution|Could not resolve host|Name or service not known|Network is unreachable",
        "the instance cannot reach that address: check its security group, subnet and DNS",
    ),
    KnownFailure(
        r"Failed to build image|failed to solve:|docker build.*(?:returned a non-zero|failed)",
        "the image could not be built from the project's Dockerfile",
    ),
)

_PATTERNS = tuple((re.compile(known.pattern, re.IGNORECASE), known) for known in KNOWN)

_NO_REASON = re.compile(
    r"=== Run \(ID|Run \(ID '\w*'\) failed|Non-zero exit code|returned non-zero exit status|exit code\(\d+\)$"
    r"|ResolutionImpossible: for help visit"
)
"""Last words of MLflow, of pip and of subprocess, which say that something failed and not why."""

_EXCEPTION = re.compile(r"(?P<name>(?:\w+\.)*[A-Za-z_]\w*)(?P<text>: .*)?")
_TRACEBACK = "Traceback (most recent call last):"
_SHELL = re.compile(
    r": (?:command )?not found$|: Permission denied$|: can't open file |: No such file or directory$|\bKilled\b"
    r"|: No module named |Segmentation fault|^Aborted\b|\bBus error\b|Illegal instruction|: cannot execute"
)
_TOOL = re.compile(
    r"^\W*(?:error(?:\[\w+\])?: |fatal: |cause: |caused by: |no solution found|CondaError|docker: "
    r"|unable to find image|ResolvePackageNotFound)|^[\w./-]+(?::\d+)*: error: |^stderr: '(?:fatal|error|remote|ERROR)",
    re.IGNORECASE,
)
_CANNOT_BEGIN = "orchestrator: the training cannot begin: "
"""Before what `remote/hooks` found out before the training; nothing else says more."""

_CONSEQUENCE = re.compile(r"^\W*(?:cause|caused by): ", re.IGNORECASE)
_FRAME = re.compile(r'\s+File "[^"]*(?:/site-packages/(?:mlflow|click)/|/bin/mlflow")')


@dataclass(frozen=True)
class Cause:
    """Why a training failed.

    Attributes:
        line: of its output, which says best why; None when none does, or when the advice says it all.
        advice: what to do; None when it is not known.
    """

    line: str | None = None
    advice: str | None = None

    def __str__(self) -> str:
        line = f" ({self.line})" if self.line else ""
        return f"{line}; {self.advice}" if self.advice else line


def shown(lines: Sequence[str]) -> list[str]:
    """The last lines that are worth showing: without the frames of mlflow's and click's own code.

    Args:
        lines: of the output.
    """
    kept: list[str] = []
    within = False
    for line in lines:
        within = bool(_FRAME.match(line)) or (within and line.startswith("    "))
        if not within:
            kept.append(line)
    return kept[-SHOWN_LINES:]


def cause_of_failure(lines: Sequence[str]) -> Cause:
    """Find the line of a training's output that says best why it failed, and what to do if that is known.

    Args:
        lines: its last ones, without control sequences.
    """
    lines = [line for line in lines if line.strip()]
    index = _telling(lines)
    if index is None:
        return Cause()
    line = lines[index].strip().removeprefix(_CANNOT_BEGIN)
    message = [line, *(text.strip() for text in lines[index + 1 : index + 6])]  # one that goes on in further lines
    for text in message:
        for pattern, known in _PATTERNS:
            if found := pattern.search(text):
                quoted = " ".join(dict.fromkeys((line, text))) if known.quote else None
                return Cause(quoted, known.advice.format(*found.groups()))
    if _CONSEQUENCE.match(line):
        above = next((text.strip() for text in reversed(lines[:index]) if not _CONSEQUENCE.match(text.strip())), "")
        if _TOOL.match(above):
            line = f"{above}: {line.lstrip('╰─▶├ ')}"
    return Cause(line)


def _telling(lines: Sequence[str]) -> int | None:
    """Which line it is: the last one that gives a reason, or else the last exception."""
    exceptions = []
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index].strip()
        if line.startswith(_CANNOT_BEGIN):
            return index
        is_exception = _is_exception(lines, index)
        if is_exception and _NO_REASON.search(line):
            exceptions.append(index)
        elif is_exception or (not _NO_REASON.search(line) and (_SHELL.search(line) or _TOOL.search(line))):
            return index
    return exceptions[0] if exceptions else None


def _is_exception(lines: Sequence[str], index: int) -> bool:
    """Whether it is the last line of a traceback, or looks like one."""
    found = _EXCEPTION.fullmatch(lines[index].strip())
    if not found:
        return False
    if found["text"] and found["name"].endswith(("Error", "Exception", "Interrupt")):
        return True
    if lines[index][:1].isspace():
        return False
    above = next((line for line in reversed(lines[:index]) if not line[:1].isspace()), "")
    return above == _TRACEBACK and lines[index - 1] != above
