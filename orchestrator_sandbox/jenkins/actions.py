"""The `actions` of a build in the sandbox's Jenkins: its cause, its parameters, what was checked out."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator_sandbox.jenkins.home import BY_PUSH, BuildRecord, JobConfig
from orchestrator_sandbox.jenkins.tree import ALWAYS, Bean

LIBRARY_COMMIT = "5ea1ed0ddba11" * 3 + "0"
"""The commit of the shared library that a job may be configured with."""


def request_actions(parameters: Mapping[str, str], cause: str) -> list[Bean]:
    """Why a build was asked for, and with which parameters."""
    by_push = cause == BY_PUSH
    actions = [
        Bean(
            "hudson.model.CauseAction",
            lambda: {
                "causes": [
                    Bean(
                        "hudson.triggers.SCMTrigger$SCMTriggerCause" if by_push else "hudson.model.Cause$UserIdCause",
                        lambda: (
                            {"shortDescription": cause}
                            | ({} if by_push else {"userId": cause.split()[-1], "userName": cause.split()[-1]})
                        ),
                        default=ALWAYS,
                    )
                ]
            },
            default=ALWAYS,
        )
    ]
    if parameters:
        values = parameter_values(parameters)
        actions.append(Bean("hudson.model.ParametersAction", lambda: {"parameters": values}, default=ALWAYS))
    return actions


def branch_actions(config: JobConfig) -> list[Bean]:
    """What the branch source says of a branch: that it is the primary one, or whose change request.

    https://github.com/jenkinsci/scm-api-plugin/tree/master/src/main/java/jenkins/scm/api/metadata
    """
    actions = [Bean("jenkins.scm.api.metadata.PrimaryInstanceMetadataAction")] if config.primary else []
    if config.contributor:
        fields = {
            "contributor": config.contributor,
            "contributorDisplayName": config.contributor.title(),
            "contributorEmail": None,
        }
        actions.append(Bean("jenkins.scm.api.metadata.ContributorMetadataAction", lambda: fields))
    return actions


def parameter_values(parameters: Mapping[str, str]) -> list[Bean]:
    """The values of string parameters."""

    def value(name: str, text: str) -> Bean:
        return Bean("hudson.model.StringParameterValue", lambda: {"name": name, "value": text}, default=ALWAYS)

    return [value(*parameter) for parameter in parameters.items()]


def build_data(build: BuildRecord, repository: str, commit: str, branch: str) -> Bean:
    """What the Git plugin records of a checkout."""
    heads = [Bean(None, lambda: {"SHA1": commit, "name": branch}, default=ALWAYS)]
    revision = Bean(None, lambda: {"SHA1": commit, "branch": heads}, default=ALWAYS)
    built = Bean(
        "hudson.plugins.git.util.Build",
        lambda: {
            "buildNumber": build.number,
            "buildResult": None,
            "marked": revision,
            "revision": revision,
        },
        default=ALWAYS,
    )
    return Bean(
        "hudson.plugins.git.util.BuildData",
        lambda: {
            "buildsByBranchName": {branch: built},
            "lastBuiltRevision": revision,
            "remoteUrls": [repository],
            "scmName": "",
        },
        default=ALWAYS,
    )
