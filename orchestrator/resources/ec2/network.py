"""Whether this machine may reach the private addresses of a network of AWS, as far as it can tell by itself."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping

import requests

from orchestrator.resources.retry import IMDS

AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn", ".amazonaws.eu")
"""Of AWS's own APIs."""

_IN_A_CONTAINER_OF_AWS = (
    "ECS_CONTAINER_METADATA_URI_V4",
    "ECS_CONTAINER_METADATA_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "KUBERNETES_SERVICE_HOST",
)
_PUBLIC = "192.0.2.1"
"""Nobody's (RFC 5737): where packets to the Internet leave this machine."""


def may_reach(cidr: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether private addresses of this range may be reachable; no, only where nothing speaks for it.

    What speaks for it: this machine is an instance of AWS, whose network may be the same or a peer; it is a container
    that has no IMDS to ask; it has an address in that range, or a route to it that is not the one to the Internet
    (a VPN, say).

    Args:
        cidr: of the subnet, such as 10.0.1.0/24.
        environment: the variables of this process.
    """
    if any(environment.get(name) for name in _IN_A_CONTAINER_OF_AWS) or _is_instance(environment):
        return True
    network = ipaddress.ip_network(cidr, strict=False)
    ours = _source_address(str(network.network_address + 1))
    return ours is not None and (ours != _source_address(_PUBLIC) or ipaddress.ip_address(ours) in network)


def _is_instance(environment: Mapping[str, str]) -> bool:
    """Whether AWS's metadata service answers here; https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html."""
    address = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    with requests.Session() as session:
        session.trust_env = False  # no proxy can know who we are
        try:
            answer = session.put(
                f"{address.rstrip('/')}/latest/api/token",
                headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
                timeout=(IMDS.connect_seconds, IMDS.answer_seconds),
                allow_redirects=False,
            )
        except (requests.RequestException, ValueError):
            return False
        return answer.ok


def _source_address(destination: str) -> str | None:
    """From which of our addresses packets go there; None: there is no route. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
