"""What AWS's services say no with, as one sentence; for the targets that are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from orchestrator.errors import TargetUnavailable

CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=10,
    read_timeout=60,
    user_agent_extra="orchestrator",
)

FAULTS = (BotoCoreError, ClientError, boto3.exceptions.Boto3Error)


def error_code(error: ClientError) -> str:
    """AWS's name of an error, such as `AccessDenied`."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Say what went wrong in a target of AWS.

    Raises:
        TargetUnavailable: whatever boto3 raised.
    """
    try:
        yield
    except FAULTS as error:
        text = " ".join(str(error).split())[:500]
        raise TargetUnavailable(
            f"{place} cannot be used ({text}): check AWS_ACCESS_KEY_ID, AWS_DEFAULT_REGION and what this login may do "
            "there"
        ) from error
