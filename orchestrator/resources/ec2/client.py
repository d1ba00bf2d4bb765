"""Leases EC2 instances: finds, launches, awaits, takes over and terminates them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import dagster as dg
import tenacity

from orchestrator.errors import Ec2Error, InstanceLost, SettingsError
from orchestrator.resources import retry
from orchestrator.resources.ec2.api import Ec2Api
from orchestrator.resources.ec2.instance import NOT_GONE, Instance
from orchestrator.resources.ec2.launch import launch
from orchestrator.resources.ec2.network import AWS_DOMAINS, may_reach
from orchestrator.resources.ec2.prices import hourly_usd
from orchestrator.resources.ec2.ready import Readiness, require_alive
from orchestrator.resources.ec2.tags import Owner, api_tags, deployment_tag
from orchestrator.resources.retry import Ec2Policy
from orchestrator.settings.groups import MachineSettings

_log = logging.getLogger(__name__)


class Ec2:
    """EC2 as this installation uses it: whatever it finds carries its deployment's tag.

    Calls are repeated through an outage of a minute or two. What boto3 raises never gets out: every
    method raises `Ec2Error` or one of its kinds, with the setting to change in the sentence.
    """

    def __init__(self, settings: MachineSettings, *, policy: Ec2Policy = retry.EC2) -> None:
        """Connect to nothing yet.

        Args:
            settings: the machine; credentials, region and endpoint are boto3's own business.
            policy: how patient to be.
        """
        self._settings = settings
        self._api = Ec2Api(settings, policy=policy)

    @property
    def address(self) -> str:
        """Where the API is that we ask: AWS's own, or that of AWS_ENDPOINT_URL and its like.

        Raises:
            Ec2Error: boto3 cannot tell.
        """
        return self._api.call("find the EC2 API", lambda: self._api.client.meta.endpoint_url)

    def with_policy(self, policy: Ec2Policy) -> Ec2:
        """The same, with another patience and a connection of its own."""
        return Ec2(self._settings, policy=policy)

    def find(self, *, pipeline: str, partition: str) -> Instance | None:
        """The instance that is alive for this build, whichever attempt launched it; the newest of several."""
        return self._api.call(
            f"look for the instance of {pipeline} {partition}",
            lambda: self._api.find_once(pipeline=pipeline, partition=partition),
        )

    def of_build(self, *, pipeline: str, partition: str) -> list[Instance]:
        """All instances that are alive and tagged for this build, the oldest first.

        Tags can be copied: which of them is to be believed, the caller must know from elsewhere.
        """
        return self._api.call(
            f"look for the instances of {pipeline} {partition}",
            lambda: self._api.of_build_once(pipeline=pipeline, partition=partition),
        )

    def look(self, instance_id: str) -> Instance | None:
        """What AWS says of one instance, alive or not; None when it knows no such instance, or not any more."""
        return self._api.look(instance_id)

    def find_all(self) -> list[Instance]:
        """Every instance of this deployment that still costs money, stopped ones too, the oldest first."""
        return self._api.call(
            "list the instances of this deployment",
            lambda: self._api.list_once(deployment_tag(self._settings.deployment), states=NOT_GONE),
        )

    def describe(self, instance_id: str) -> Instance:
        """What AWS says of one instance, alive or not.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more (an hour after its end).
        """
        if instance := self._api.look(instance_id):
            return instance
        raise InstanceLost(
            f"AWS knows no instance {instance_id} in {self._api.region}: it ended long ago, or belongs to "
            "another account or region; start the run again"
        )

    def require_alive(self, instance_id: str) -> Instance:
        """What AWS says of one instance that must still be there.

        Raises:
            InstanceLost: it is gone or going; the sentence says why.
        """
        return require_alive(self.describe(instance_id))

    def require_usable_subnets(self) -> None:
        """Refuse subnets whose instances get no public address where we evidently need one, if AWS tells of them.

        Raises:
            SettingsError: INSTANCE_ADDRESS asks for one; or it is `auto`, and we are not in AWS.
        """
        wanted = self._settings.address
        subnets = [] if wanted == "private" else self._api.private_subnets(self._settings.subnets)
        is_aws = (urlsplit(self.address).hostname or "").endswith(AWS_DOMAINS)
        if wanted == "auto":
            # One without IPv4 has no such range.
            subnets = [each for each in subnets if is_aws and "CidrBlock" in each and not may_reach(each["CidrBlock"])]
        if subnets:
            ids = ", ".join(each["SubnetId"] for each in subnets)
            reason = (
                "INSTANCE_ADDRESS=public"
                if wanted == "public"
                else "this machine has no way of its own to their network"
            )
            raise SettingsError(
                f"The instances of SUBNET_ID={ids} get no public address, and {reason}: name a subnet that gives its "
                "instances one (MapPublicIpOnLaunch), or set INSTANCE_ADDRESS=private if we do reach their private ones"
            )

    def launch(self, owner: Owner, *, attempt: str, instance_types: Sequence[str] = ()) -> Instance:
        """Launch an instance for a build, in the first market, type and subnet that has one.

        Look with `find` first. When an answer of AWS is lost, the instance is looked for by its tags
        before it is asked for again, so that one launch never leaves two.

        Args:
            owner: for whom, and until when.
            attempt: another text for each instance that a build may get, such as the Dagster run's ID and
                how many instances it has lost so far.
            instance_types: replace INSTANCE_TYPE, if any.

        Raises:
            CapacityUnavailable: no market, type or subnet has an instance now; says what each answered.
            QuotaUsedUp: likewise, and the end of another instance may make room.
            LaunchRefused: AWS does not start such an instance, now or later; names the setting to change.
            InstanceLost: this very attempt launched an instance before, and it has ended.
            Ec2Error: AWS was away for longer than an outage is waited for.
        """
        instance = launch(self._api, owner, attempt=attempt, instance_types=instance_types)
        self._api.note_launch(instance.id)
        return instance

    def wait_until_ready(self, instance: Instance) -> Instance:
        """Wait until an instance runs, has an address and, as READY_WHEN says, passed 2/2 status checks.

        Args:
            instance: a new or an adopted one.

        Returns:
            The instance as it is then, with its address.

        Raises:
            InstanceLost: it ended; the sentence says why.
            LaunchRefused: it never ran, for a reason that another launch would meet again.
            CapacityUnavailable: it never ran, because AWS had no capacity for it after all.
            Ec2Error: READY_MINUTES have passed, or it has no such address as INSTANCE_ADDRESS asks for.
        """
        return Readiness(self._api).wait(instance)

    def take_over(self, instance_id: str, owner: Owner) -> None:
        """Write on an instance that another attempt uses it now.

        The machine's own deadline was planted at its launch and stays: `owner.power_off_at` should be it.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more.
        """
        self.tag(instance_id, owner.attempt_tags())

    def tag(self, instance_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on an instance; others stay.

        Raises:
            InstanceLost: AWS knows no such instance, or not any more.
        """
        self._api.call_about(
            instance_id,
            f"tag instance {instance_id}",
            lambda: self._api.client.create_tags(Resources=[instance_id], Tags=api_tags(tags)),
        )

    def terminate(self, instance_id: str) -> str | None:
        """End an instance, and make sure that it ends. Doing it twice does no harm.

        Returns:
            Its state, shutting-down or terminated; None when AWS knows no such instance, or not any more.

        Raises:
            Ec2Error: AWS does not end it; the sentence says why.
        """

        def send() -> str:
            answer = self._api.client.terminate_instances(InstanceIds=[instance_id])
            ending = answer.get("TerminatingInstances", [])
            return ending[0]["CurrentState"]["Name"] if ending else self.describe(instance_id).state

        until_gone = self._api.policy.polling(retry=tenacity.retry_if_result(lambda state: state in NOT_GONE))
        try:
            return until_gone(lambda: self._api.call_about(instance_id, f"terminate instance {instance_id}", send))
        except tenacity.RetryError as error:
            raise Ec2Error(
                f"instance {instance_id} is still {error.last_attempt.result()}: terminate it in the EC2 console"
            ) from None
        except InstanceLost:
            return None

    def with_more_memory(self, than: str, among: Sequence[str]) -> list[str]:
        """Of these instance types, those with more memory than another one; where AWS does not say: those behind it."""
        types = [type_ for type_ in dict.fromkeys(among) if type_ != than]
        if not types:
            return []
        memory: dict[str, int] = {}
        try:
            answer = self._api.call(
                "compare the memory of instance types",
                lambda: self._api.client.describe_instance_types(InstanceTypes=cast(Any, [than, *types])),
            )
            for each in answer.get("InstanceTypes", []):
                if size := each.get("MemoryInfo", {}).get("SizeInMiB"):
                    memory[each.get("InstanceType", "")] = size
            reason = f"AWS tells of no memory of {than}"
        except Ec2Error as error:
            reason = str(error)
        if than not in memory:
            _log.info(f"Taking the order of INSTANCE_TYPE for that of memory: {reason}")
            return types[list(dict.fromkeys(among)).index(than) :] if than in among else []
        return [type_ for type_ in types if memory.get(type_, 0) > memory[than]]

    def hourly_usd(self, instance: Instance) -> float | None:
        """Price of one hour of this instance in USD, without its volume; None when it cannot be had."""
        return self.price(instance.type, market=instance.market, zone=instance.zone)

    def price(self, instance_type: str, *, market: str, zone: str | None = None) -> float | None:
        """Price of one hour of such an instance in USD, without its volume; None when it cannot be had.

        Args:
            instance_type: whose price the settings may have, and AWS else.
            market: on-demand or spot.
            zone: of a spot instance; None: the dearest one's price.
        """
        known = self._settings.known_price(instance_type)
        if known is not None:
            return known
        return hourly_usd(self._api.session, instance_type, market=market, zone=zone, region=self._api.region)


class Ec2Resource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """EC2 for Dagster: connects when asked, with a pipeline's settings."""

    def connect(self, settings: MachineSettings) -> Ec2:
        """A client for these settings."""
        return Ec2(settings)
