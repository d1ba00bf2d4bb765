"""Jenkins: builds of plain and multibranch jobs, and the commit that each of them tested."""

from orchestrator.resources.jenkins.answers import Build, BuildSummary, JobSummary
from orchestrator.resources.jenkins.client import Jenkins, JenkinsResource, job_name

__all__ = ["Build", "BuildSummary", "Jenkins", "JenkinsResource", "JobSummary", "job_name"]
