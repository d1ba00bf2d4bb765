"""What containers of the borrowed image are told, and what they run; for tests of docker_env."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator_sandbox.docker_engine import BORROWED

OF_THE_IMAGE = "print('this is the code of the image')\n"

PLACES = sorted({*BORROWED, *([] if sys.base_prefix.startswith("/usr") else [sys.base_prefix])})

PYTHON = f"{sys.base_prefix}/bin/python3"


def volumes(*shared: Path) -> list[str]:
    """What a container mounts: the machine's programs, and folders that it may write to."""
    return [f"{place}:{place}:ro" for place in PLACES] + [f"{folder}:{folder}" for folder in shared]


def docker_run(*command: str, label: str, shared: Sequence[Path] = (), options: Sequence[str] = ()) -> list[str]:
    """The argument list of `docker run` for a command in the borrowed image."""
    argv = ["docker", "run", "--rm", "--network=host", "--label", label, *options]
    for volume in volumes(*shared):
        argv += ["-v", volume]
    return [*argv, "tiny", *command]


def mlproject(*shared: Path) -> str:
    """An MLproject with a docker_env, whose script gets one argument."""
    return (
        f"name: boxed\ndocker_env:\n  image: tiny\n  volumes: {json.dumps(volumes(*shared))}\n"
        "entry_points:\n  main:\n    parameters:\n      what: {type: string, default: tell}\n"
        f"    command: {json.dumps(PYTHON + ' train.py {what}')}\n"
    )
