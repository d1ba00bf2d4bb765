"""EC2: instances that are leased for one build each, found again by their tags."""

from orchestrator.resources.ec2.client import Ec2, Ec2Resource
from orchestrator.resources.ec2.instance import NOT_GONE, Instance, Market, fingerprint
from orchestrator.resources.ec2.tags import Owner, build_tags, tag_value, timestamp

__all__ = [
    "NOT_GONE",
    "Ec2",
    "Ec2Resource",
    "Instance",
    "Market",
    "Owner",
    "build_tags",
    "fingerprint",
    "tag_value",
    "timestamp",
]
