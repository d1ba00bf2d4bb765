"""Waits until an instance can be used, and says what it is waiting for."""

from __future__ import annotations

import logging
import time

import tenacity

from orchestrator.errors import CapacityUnavailable, Ec2Error, InstanceLost, LaunchRefused
from orchestrator.resources.ec2.api import Ec2Api
from orchestrator.resources.ec2.instance import Instance

_log = logging.getLogger(__name__)


def require_alive(instance: Instance) -> Instance:
    """Pass an instance on that is pending or running.

    Raises:
        InstanceLost: it is gone or going; the sentence says why.
    """
    if not instance.alive:
        raise InstanceLost(f"instance {instance.id} is {instance.state}: {instance.state_reason}")
    return instance


class Readiness:
    """One wait for one instance, see `Ec2.wait_until_ready`."""

    def __init__(self, api: Ec2Api) -> None:
        """Prepare to wait.

        Args:
            api: sends the requests.
        """
        self._api = api
        self._settings = api.settings
        self._last_line = ""
        self._ran = False
        self._address_until: float | None = None
        self._private_only = False

    def wait(self, instance: Instance) -> Instance:
        """Wait for this instance; the one that is returned has its address."""
        self._ran = instance.state == "running"
        minutes = self._settings.ready_minutes
        polling = self._api.policy.with_total(minutes * 60).polling(
            retry=tenacity.retry_if_result(lambda look: bool(look[1]))
        )
        try:
            ready, _ = polling(self._poll, instance)
        except tenacity.RetryError as error:
            _, lack = error.last_attempt.result()
            sooner = " or set READY_WHEN=ssh" if self._settings.ready_when == "status-checks" else ""
            raise Ec2Error(
                f"instance {instance.id} was not ready after {minutes:g} minutes ({lack}): raise READY_MINUTES"
                f"{sooner}, or look at its system log in the EC2 console"
            ) from None
        return ready

    def _poll(self, instance: Instance) -> tuple[Instance, str]:
        """The instance as it is now, and what it still lacks: nothing when it is ready."""
        seen = self._api.look(instance.id)
        if seen is None:
            raise InstanceLost(f"AWS does not know instance {instance.id} any more: start the run again")
        if seen.refused_to_start and not self._ran:
            raise LaunchRefused(f"instance {seen.id} never ran: {seen.state_reason}")
        if seen.state_code == "Server.InsufficientInstanceCapacity" and not self._ran:
            raise CapacityUnavailable(f"instance {seen.id} never ran: {seen.state_reason}")
        lack = self._lack(require_alive(seen))
        self._ran = self._ran or seen.state == "running"
        line = (
            f"Waiting for instance {seen.id} ({seen.state}): {lack}"
            if lack
            else f"Instance is ready: {seen.id} at {seen.address}"
        )
        if line != self._last_line:
            _log.info(line)
            self._last_line = line
        return seen, lack

    def _lack(self, instance: Instance) -> str:
        if instance.state == "pending":
            return "it does not run yet"
        if not instance.address:
            if not self._address_may_come():
                raise Ec2Error(
                    f"instance {instance.id} has no {self._settings.address.replace('auto', 'IPv4')} address: set "
                    "INSTANCE_ADDRESS=private if we can reach that, or SUBNET_ID to a subnet that gives its "
                    "instances public addresses"
                )
            return "it has no address yet"
        if self._settings.address == "auto" and not instance.public and self._public_address_may_come(instance):
            return "it has no public address yet"
        if self._settings.ready_when == "ssh":
            return ""
        passed = self._checks_passed(instance.id)
        return "" if passed == 2 else f"{passed}/2 status checks"

    def _address_may_come(self) -> bool:
        """Whether it runs so recently that AWS may not show its address yet."""
        if self._address_until is None:
            self._address_until = time.monotonic() + self._api.policy.appearance_seconds
        return time.monotonic() < self._address_until

    def _public_address_may_come(self, instance: Instance) -> bool:
        if self._private_only:
            return False
        begun = self._address_until is not None
        if self._address_may_come() and (begun or self._api.gives_public_addresses(instance.subnet)):
            return True
        _log.info(f"No public address, using {instance.address} of instance {instance.id}")
        self._private_only = True
        return False

    def _checks_passed(self, instance_id: str) -> int:
        """How many of the two checks are ok.

        https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-system-instance-status-check.html
        """
        try:
            answer = self._api.call(
                f"ask for the status checks of instance {instance_id}",
                lambda: self._api.client.describe_instance_status(InstanceIds=[instance_id]),
            )
        except InstanceLost:
            return 0  # not listed yet; whether it is really gone, the next look tells
        return sum(
            status[check]["Status"] == "ok"
            for status in answer["InstanceStatuses"]
            for check in ("InstanceStatus", "SystemStatus")
        )
