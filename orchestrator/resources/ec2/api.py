"""EC2's API: calls that ride out an outage and fail in plain words, and how instances are looked for."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import boto3
import tenacity
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.parsers import ResponseParserError

from orchestrator.errors import Ec2Error, InstanceLost
from orchestrator.resources.ec2.errors import AWS_ERRORS, explain, transient
from orchestrator.resources.ec2.instance import ALIVE, Instance
from orchestrator.resources.ec2.tags import build_tags
from orchestrator.resources.retry import Ec2Policy
from orchestrator.settings.groups import MachineSettings

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef, SubnetTypeDef

T = TypeVar("T")
_log = logging.getLogger(__name__)

# boto3 tries once: how long a call is repeated is ours to say, in time instead of in numbers, and between
# two run_instances we look whether the first one was heard (not every EC2 API minds the ClientToken).
_BOTO3_TRIES_ONCE = Config(
    retries={"mode": "standard", "total_max_attempts": 1},
    user_agent_extra="orchestrator",
)


# The most that DescribeInstances gives at once:
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
_PAGE = 1000


class Ec2Api:
    """boto3's EC2 client, connected when it is first used, and one way to call it.

    Attributes:
        settings: of the machine.
        policy: how patient we are.
        session: boto3's, which carries the credentials.
    """

    def __init__(self, settings: MachineSettings, *, policy: Ec2Policy) -> None:
        """Connect to nothing yet.

        Args:
            settings: what errors speak of; credentials, region and endpoint are boto3's own business.
            policy: how long and how often a failing call is repeated.
        """
        self.settings = settings
        self.policy = policy
        self.session = boto3.session.Session()
        self._new_until: dict[str, float] = {}
        self._refusals: set[str] = set()

    @cached_property
    def client(self) -> EC2Client:
        """The client. Only use it in what is handed to `call`, because already its making may fail."""
        times = Config(connect_timeout=self.policy.connect_seconds, read_timeout=self.policy.answer_seconds)
        client = self.session.client("ec2", config=_BOTO3_TRIES_ONCE.merge(times))
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
        try:
            return self.policy.retrying(retry=tenacity.retry_if_exception(transient))(send)
        except AWS_ERRORS as error:
            raise explain(error, doing=doing, settings=self.settings, region=self.region, refusal=refusal) from error

    def note_launch(self, instance_id: str) -> None:
        """Remember that an instance is new, so that not all of AWS's servers know it yet."""
        self._new_until[instance_id] = time.monotonic() + self.policy.appearance_seconds

    def is_new_refusal(self, refusal: str) -> bool:
        """Whether this client has not met this refusal yet; who waits meets it again and again."""
        new = refusal not in self._refusals
        self._refusals.add(refusal)
        return new

    def call_about(self, instance_id: str, doing: str, send: Callable[[], T]) -> T:
        """Call, and believe that AWS does not know the instance only after a while: its servers do not agree at once.

        Raises:
            InstanceLost: AWS has said so again and again, for `absence_seconds`; and a new one has had its time.
        """
        believed_at: float | None = None

        def believed(_: tenacity.RetryCallState) -> bool:
            nonlocal believed_at
            now = time.monotonic()
            if believed_at is None:
                believed_at = max(self._new_until.get(instance_id, 0), now + self.policy.absence_seconds)
            return now >= believed_at

        asking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(InstanceLost),
            stop=believed,
            wait=tenacity.wait_fixed(self.policy.first_pause_seconds),
            reraise=True,
        )
        return asking(lambda: self.call(doing, send))

    def instance(self, raw: InstanceTypeDef) -> Instance:
        """One instance of an answer, with the address that INSTANCE_ADDRESS asks for."""
        return Instance.from_api(raw, address=self.settings.address)

    def _readable(self, raw: InstanceTypeDef) -> Instance | None:
        """One instance of a list; None when AWS says of it what cannot be: it costs no other one."""
        try:
            return self.instance(raw)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            _log.warning(f"Left out an instance that cannot be read: {raw.get('InstanceId')} ({error!r})")
            return None

    def look(self, instance_id: str) -> Instance | None:
        """What AWS says of one instance, alive or not; None when it knows no such instance."""

        def send() -> Instance:
            answer = self.client.describe_instances(InstanceIds=[instance_id])
            instances = [raw for group in answer.get("Reservations", []) for raw in group["Instances"]]
            if not instances:
                raise InstanceLost(f"AWS lists no instance {instance_id}")
            return self.instance(instances[0])

        try:
            return self.call_about(instance_id, f"look at instance {instance_id}", send)
        except InstanceLost:
            return None

    def gives_public_addresses(self, subnet: str) -> bool:
        """Whether instances in this subnet may get a public address; yes, where AWS does not say."""
        return not self.private_subnets([subnet] if subnet else [])

    def private_subnets(self, subnets: Sequence[str]) -> list[SubnetTypeDef]:
        """Which of these give their instances no public address; none, where AWS does not say."""
        if not subnets:
            return []
        try:
            answer = self.call(
                f"look at subnet {', '.join(subnets)}",
                lambda: self.client.describe_subnets(SubnetIds=list(subnets)).get("Subnets", []),
            )
        except Ec2Error as error:
            _log.info(f"Could not tell whether instances get public addresses: {error}")
            return []
        return [subnet for subnet in answer if "SubnetId" in subnet and not subnet.get("MapPublicIpOnLaunch", True)]

    def find_once(self, *, pipeline: str, partition: str) -> Instance | None:
        """The instance that is alive for a build, the newest of several; to be used in what is handed to `call`."""
        return next(reversed(self.of_build_once(pipeline=pipeline, partition=partition)), None)

    def of_build_once(self, *, pipeline: str, partition: str) -> list[Instance]:
        """All instances that are alive and tagged for a build, the oldest first; likewise."""
        tags = build_tags(deployment=self.settings.deployment, pipeline=pipeline, partition=partition)
        return self.list_once(tags, states=ALIVE)

    def list_once(self, tags: Mapping[str, str], *, states: Collection[str]) -> list[Instance]:
        """All instances with these tags in these states, the oldest first; to be used in what is handed to `call`."""
        wanted = {"instance-state-name": list(states), **{f"tag:{key}": [tags[key]] for key in tags}}
        pages = self.client.get_paginator("describe_instances").paginate(
            Filters=[{"Name": name, "Values": values} for name, values in wanted.items()],
            PaginationConfig={"PageSize": _PAGE},
        )
        instances = [
            instance
            for page in pages
            for group in page.get("Reservations", [])
            for raw in group["Instances"]
            if (instance := self._readable(raw))
        ]
        # What is found here is adopted or ended: an API that does not know a filter must not widen it.
        ours = [each for each in instances if each.state in states and tags.items() <= each.tags.items()]
        return sorted(ours, key=lambda instance: (instance.launched_at, instance.id))


def _refuse_pages(http_response: AWSResponse, **_: object) -> None:
    """Take no web page for an answer: boto3 reads one that is well-formed XML as an answer without content."""
    if http_response.status_code < 300 and re.match(
        rb"\s*<(!doctype )?html", http_response.content[:512], re.IGNORECASE
    ):
        raise ResponseParserError("a web page came instead of an answer of EC2")
