"""Calls to EC2 that ride out an outage, and fail in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import boto3
import tenacity
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.parsers import ResponseParserError

from orchestrator.errors import Ec2Error
from orchestrator.resources.ec2.errors import AWS_ERRORS, explain, transient
from orchestrator.settings.groups import MachineSettings

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

T = TypeVar("T")

# boto3 tries once: how long a call is repeated is ours to say, in time instead of in numbers, and between
# two run_instances we look whether the first one was heard (not every EC2 API minds the ClientToken).
_ONE_TRY = Config(
    retries={"mode": "standard", "total_max_attempts": 1},
    user_agent_extra="orchestrator",
)


@dataclass(frozen=True)
class Pace:
    """How patient we are with AWS, in seconds.

    Attributes:
        outage: how long a call is repeated while AWS is away, broken, or throttles us; 0: one try.
        first_wait: pause after the first failed call or unanswered poll; it doubles each time.
        longest_wait: the longest pause.
        appearance: how long a new instance may be unknown to some of AWS's servers
            (https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
        connect: how long one connection to AWS may take.
        answer: how long one answer may take.
    """

    outage: float = 150
    first_wait: float = 0.5
    longest_wait: float = 10
    appearance: float = 30
    connect: float = 5
    answer: float = 30


USUAL_PACE = Pace()

# An instance that is gone has to be noticed within 30 s, of which SSH takes up to 22.
HASTY_CONNECT_SECONDS = 2.5
HASTY_ANSWER_SECONDS = 5.0


class Ec2Calls:
    """boto3's EC2 client, connected when it is first used, and one way to call it."""

    def __init__(self, settings: MachineSettings, *, pace: Pace) -> None:
        """Connect to nothing yet.

        Args:
            settings: what errors speak of; credentials, region and endpoint are boto3's own business.
            pace: how long and how often a failing call is repeated.
        """
        self._settings = settings
        self._pace = pace
        self.session = boto3.session.Session()

    @cached_property
    def client(self) -> EC2Client:
        """The client. Only use it in what is handed to `call`, for already its making may fail."""
        times = Config(connect_timeout=self._pace.connect, read_timeout=self._pace.answer)
        client = self.session.client("ec2", config=_ONE_TRY.merge(times))
        client.meta.events.register("after-call.ec2", _refuse_pages)
        return client

    @property
    def region(self) -> str:
        """The region that is asked."""
        return self.session.region_name or "no region"

    def call(self, doing: str, send: Callable[[], T], *, refusal: type[Ec2Error] = Ec2Error) -> T:
        """Send a request, again and again while AWS is away, broken, or throttles us.

        Args:
            doing: what it is for, such as "launch an instance".
            send: does it; may be called many times.
            refusal: the class of an error that another try would not change.

        Raises:
            Ec2Error: or one of its kinds, with the setting to change.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(transient),
            stop=tenacity.stop_after_delay(self._pace.outage),
            wait=tenacity.wait_random_exponential(multiplier=self._pace.first_wait, max=self._pace.longest_wait),
            reraise=True,
        )
        try:
            return retrying(send)
        except AWS_ERRORS as error:
            raise explain(error, doing=doing, settings=self._settings, region=self.region, refusal=refusal) from error


def _refuse_pages(http_response: AWSResponse, **_: object) -> None:
    """Take no web page for an answer: boto3 reads one that is well-formed XML as an answer without content."""
    if http_response.status_code < 300 and re.match(
        rb"\s*<(!doctype )?html", http_response.content[:512], re.IGNORECASE
    ):
        raise ResponseParserError("a web page came instead of an answer of EC2")
