"""Jenkins: builds of plain and multibranch jobs, and the commit that each of them tested."""

from orchestrator.resources.jenkins.answers import (
    LARGEST_NUMBER,
    LATEST_TIMESTAMP,
    Build,
    BuildPage,
    BuildSummary,
    JobKind,
    JobOverview,
    JobSummary,
    UnreadableBuild,
)
from orchestrator.resources.jenkins.checkout import CUSTOMARY_BRANCHES, is_address
from orchestrator.resources.jenkins.client import Jenkins, JenkinsResource
from orchestrator.resources.jenkins.pasted import can_be_job, job_name
from orchestrator.resources.jenkins.remotes import GitAddress, commit_url, without_credentials

__all__ = [
    "CUSTOMARY_BRANCHES",
    "LARGEST_NUMBER",
    "LATEST_TIMESTAMP",
    "Build",
    "BuildPage",
    "BuildSummary",
    "GitAddress",
    "Jenkins",
    "JenkinsResource",
    "JobKind",
    "JobOverview",
    "JobSummary",
    "UnreadableBuild",
    "can_be_job",
    "commit_url",
    "is_address",
    "job_name",
    "without_credentials",
]
