"""Jenkins: builds of plain and multibranch jobs, and the commit that each of them tested."""

from orchestrator.resources.jenkins.answers import (
    Build,
    BuildPage,
    BuildSummary,
    JobKind,
    JobOverview,
    JobSummary,
    UnreadableBuild,
)
from orchestrator.resources.jenkins.checkout import without_credentials
from orchestrator.resources.jenkins.client import Jenkins, JenkinsResource, job_name

__all__ = [
    "Build",
    "BuildPage",
    "BuildSummary",
    "Jenkins",
    "JenkinsResource",
    "JobKind",
    "JobOverview",
    "JobSummary",
    "UnreadableBuild",
    "job_name",
    "without_credentials",
]
