"""Leases EC2 instances: finds, launches, awaits, takes over and terminates them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeVar

import dagster as dg
import tenacity

from orchestrator.errors import Ec2Error, InstanceLost
from orchestrator.resources.ec2.api import (
    HASTY_ANSWER_SECONDS,
    HASTY_CONNECT_SECONDS,
    USUAL_PACE,
    Ec2Calls,
    Pace,
)
from orchestrator.resources.ec2.instance import (
    ALIVE,
    NOT_GONE,
    Instance,
    Lease,
    build_tags,
    deployment_tag,
)
from orchestrator.resources.ec2.launch import api_tags, launch
from orchestrator.resources.ec2.prices import hourly_usd
from orchestrator.resources.ec2.ready import Readiness, require_alive
from orchestrator.settings.groups import MachineSettings
from orchestrator.settings.source import Settings

__all__ = ["Ec2", "Ec2Resource", "Instance", "Lease", "Pace"]

T = TypeVar("T")

# The most that DescribeInstances gives at once:
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
_PAGE = 1000


def _silent(_line: str) -> None:
    """Report nothing."""


class Ec2:
    """EC2 as this installation uses it: whatever it finds carries its deployment's tag.

    Calls are repeated through an outage of a minute or two. What boto3 raises never gets out: every
    method raises `Ec2Error` or one of its kinds, with the setting to change in the sentence.
    """

    def __init__(self, settings: MachineSettings, *, pace: Pace = USUAL_PACE) -> None:
        """Connect to nothing yet.

        Args:
            settings: the machine; credentials, region and endpoint are boto3's own business.
            pace: how patient to be.
        """
        self._settings = settings
        self._pace = pace
        self._calls = Ec2Calls(settings, pace=pace)
        self._new_until: dict[str, float] = {}

    def hasty(self) -> Ec2:
        """The same, for questions whose answer is of use at once or not at all: one short try a call."""
        pace = replace(self._pace, outage=0, appearance=0, connect=HASTY_CONNECT_SECONDS, answer=HASTY_ANSWER_SECONDS)
        return Ec2(self._settings, pace=pace)

    def find(self, *, pipeline: str, partition: str) -> Instance | None:
        """The instance that is alive for this build, whichever attempt launched it; the newest of several."""
        return self._calls.call(
            f"look for the instance of {pipeline} {partition}",
            lambda: self._newest(pipeline=pipeline, partition=partition),
        )

    def find_all(self) -> list[Instance]:
        """Every instance of this deployment that still costs money, stopped ones too, the oldest first."""
        return self._calls.call(
            "list the instances of this deployment",
            lambda: self._list(deployment_tag(self._settings.deployment), states=NOT_GONE),
        )

    def describe(self, instance_id: str) -> Instance:
        """What AWS says of one instance, alive or not.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more (an hour after its end).
        """
        if instance := self._look(instance_id):
            return instance
        raise InstanceLost(
            f"AWS knows no instance {instance_id} in {self._calls.region}: it ended long ago, or belongs to "
            "another account or region; start the run again"
        )

    def require_alive(self, instance_id: str) -> Instance:
        """What AWS says of one instance that must still be there.

        Raises:
            InstanceLost: it is gone or going; the sentence says why.
        """
        return require_alive(self.describe(instance_id))

    def launch(
        self,
        lease: Lease,
        *,
        attempt: str,
        instance_type: str | None = None,
        on_progress: Callable[[str], None] = _silent,
    ) -> Instance:
        """Launch an instance for a build, in the first market, type and subnet that has one.

        Look with `find` first. When an answer of AWS is lost, the instance is looked for by its tags
        before it is asked for again, so that one launch never leaves two.

        Args:
            lease: for whom, and until when.
            attempt: another text for each instance that a build may get, such as the Dagster run's ID and
                how many instances it has lost so far.
            instance_type: replaces INSTANCE_TYPE.
            on_progress: gets a line when a place has no capacity.

        Raises:
            CapacityUnavailable: no place has an instance now; says what each of them answered.
            LaunchRefused: AWS does not start such an instance; names the setting to change.
            InstanceLost: this very attempt launched an instance before, and it has ended.
            Ec2Error: AWS was away for longer than an outage is waited for.
        """
        instance = launch(
            self._calls,
            self._settings,
            lease,
            attempt=attempt,
            instance_type=instance_type,
            find=lambda: self._newest(pipeline=lease.pipeline, partition=lease.partition),
            on_progress=on_progress,
        )
        self._new_until[instance.id] = time.monotonic() + self._pace.appearance
        return instance

    def wait_until_ready(self, instance: Instance, *, on_progress: Callable[[str], None] = _silent) -> Instance:
        """Wait until an instance runs, has an address and, as READY_WHEN says, passed 2/2 status checks.

        Args:
            instance: a new or an adopted one.
            on_progress: gets a line whenever something has changed.

        Returns:
            The instance as it is then, with its address.

        Raises:
            InstanceLost: it ended; the sentence says why.
            Ec2Error: READY_MINUTES have passed, or it has no such address as INSTANCE_ADDRESS asks for.
        """
        return Readiness(
            self._calls,
            self._settings,
            look=lambda: self._look(instance.id),
            on_progress=on_progress,
            pace=self._pace,
        ).wait(instance)

    def take_over(self, instance_id: str, lease: Lease) -> None:
        """Write another attempt's lease on an instance.

        The machine's own deadline was planted at its launch and stays: `lease.expires_at` should be it.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more.
        """
        self.tag(instance_id, lease.attempt_tags())

    def tag(self, instance_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on an instance; others stay.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more.
        """
        self._on_instance(
            instance_id,
            f"tag instance {instance_id}",
            lambda: self._calls.client.create_tags(Resources=[instance_id], Tags=api_tags(tags)),
        )

    def terminate(self, instance_id: str) -> str | None:
        """End an instance, and make sure that it ends. Doing it twice does no harm.

        Returns:
            Its state, shutting-down or terminated; None when AWS knows no such instance, or not any more.

        Raises:
            Ec2Error: AWS does not end it; the sentence says why.
        """

        def send() -> str:
            answer = self._calls.client.terminate_instances(InstanceIds=[instance_id])
            return answer["TerminatingInstances"][0]["CurrentState"]["Name"]

        ending = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda state: state in NOT_GONE),
            stop=tenacity.stop_after_delay(self._pace.outage),
            wait=tenacity.wait_exponential(multiplier=self._pace.first_wait, max=self._pace.longest_wait),
        )
        try:
            return ending(lambda: self._on_instance(instance_id, f"terminate instance {instance_id}", send))
        except tenacity.RetryError as error:
            raise Ec2Error(
                f"instance {instance_id} is still {error.last_attempt.result()}: terminate it in the EC2 console"
            ) from None
        except InstanceLost:
            return None

    def hourly_usd(self, instance: Instance) -> float | None:
        """Price of one hour of this instance in USD, without its volume; None when it cannot be had."""
        if self._settings.hourly_usd is not None:
            return self._settings.hourly_usd
        return hourly_usd(self._calls.session, instance, region=self._calls.region)

    def _on_instance(self, instance_id: str, doing: str, send: Callable[[], T]) -> T:
        """Call, and be patient when AWS does not know an instance yet that we have just launched."""
        while_new = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(InstanceLost),
            stop=lambda _state: time.monotonic() >= self._new_until.get(instance_id, 0),
            wait=tenacity.wait_fixed(self._pace.first_wait),
            reraise=True,
        )
        return while_new(lambda: self._calls.call(doing, send))

    def _look(self, instance_id: str) -> Instance | None:
        def send() -> Instance | None:
            answer = self._calls.client.describe_instances(InstanceIds=[instance_id])
            found = [raw for group in answer["Reservations"] for raw in group["Instances"]]
            return Instance.from_api(found[0], address=self._settings.address) if found else None

        try:
            return self._calls.call(f"look at instance {instance_id}", send)
        except InstanceLost:
            return None

    def _newest(self, *, pipeline: str, partition: str) -> Instance | None:
        tags = build_tags(deployment=self._settings.deployment, pipeline=pipeline, partition=partition)
        return next(reversed(self._list(tags, states=ALIVE)), None)

    def _list(self, tags: Mapping[str, str], *, states: Collection[str]) -> list[Instance]:
        wanted = {"instance-state-name": list(states), **{f"tag:{key}": [tags[key]] for key in tags}}
        pages = self._calls.client.get_paginator("describe_instances").paginate(
            Filters=[{"Name": name, "Values": values} for name, values in wanted.items()],
            PaginationConfig={"PageSize": _PAGE},
        )
        found = [
            Instance.from_api(raw, address=self._settings.address)
            for page in pages
            for group in page["Reservations"]
            for raw in group["Instances"]
        ]
        # What is found here is adopted or ended: an API that does not know a filter must not widen it.
        ours = [one for one in found if one.state in states and tags.items() <= one.tags.items()]
        return sorted(ours, key=lambda one: (one.launched_at, one.id))


class Ec2Resource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """EC2 for Dagster: connects with a pipeline's settings at the moment of use."""

    def connect(self, settings: Settings) -> Ec2:
        """Connect.

        Raises:
            SettingsError: names every setting of the machine that is missing or wrong.
        """
        return Ec2(settings.read(MachineSettings))
