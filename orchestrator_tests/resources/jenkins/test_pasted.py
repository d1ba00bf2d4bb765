"""What people paste from the browser where a job, or Jenkins itself, is to be named."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.errors import SettingsError
from orchestrator.resources.jenkins import Jenkins, job_name
from orchestrator.resources.jenkins.pasted import server_address
from orchestrator.settings.groups import JenkinsSettings

CI = "https://ci.example.com"
PAGES = [
    "",
    "/",
    "/12/console",
    "/12/",
    "/lastBuild/",
    "/lastSuccessfulBuild/api/json?tree=number",
    "/configure",
    "/ws/job/x/",
    "/build?delay=0sec",
    "/12/testReport/(root)/",
    "/#main-panel",
    "/activity",
]
"""What follows the address of a job on pages of it and of its builds."""


@pytest.mark.parametrize(
    "begin",
    [f"{CI}/", f"{CI}/jenkins/", "http://user:pw@10.0.0.7:8080/tools/ci/", f"{CI}/view/all/", "/", "ci.example.com/"],
)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_a_job_or_of_one_of_its_builds_names_the_job(begin: str, page: str) -> None:
    assert job_name(f"{begin}job/team/job/churn{page}") == "team/churn"


@pytest.mark.parametrize(
    "text",
    [
        "team/churn",
        "/team/churn/",
        " team / churn\n",
        "team » churn",
        "job/team/job/churn",
        "job/team/job/churn/12/",
        "job/team/job/churn/lastSuccessfulBuild/",
        "team/job/churn",
        "team/job/churn/42/console",
        "team%2Fchurn",
        "team%252fchurn",
        "job%2Fteam%2Fjob%2Fchurn",
        "https%3A%2F%2Fci.example.com%2Fjob%2Fteam%2Fjob%2Fchurn",
        "ci.example.com:8080/jenkins/job/team/job/churn/",
        "localhost/job/team/job/churn",
        "view/all/job/team/job/churn",
        f"{CI}/job/team/view/all/job/churn/",
        f"{CI}/job/team/view/a/view/job/job/churn/7/",
        f"{CI}/user/ada/my-views/view/all/job/team/job/churn/",
        f"{CI}/job/team%2Fchurn/",
        f"{CI}/blue/organizations/jenkins/team%2Fchurn/activity",
        f"{CI}/blue/organizations/jenkins/team%2Fchurn/activity?branch=main",
        f"{CI}/jenkins/blue/organizations/jenkins/team%2Fchurn/detail/main/42/pipeline/12",
        f"{CI}/blue/organizations/jenkins/team%2Fchurn/detail/feature%2Fx/3/tests/",
        f"{CI}/blue/organizations/jenkins/team%2Fchurn",
        "/blue/organizations/jenkins/team%2Fchurn/branches/",
    ],
)
def test_a_job_may_be_named_in_several_ways(text: str) -> None:
    assert job_name(text) == "team/churn"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("churn", "churn"),
        ("job", "job"),
        ("job/job", "job"),
        ("view/nightly", "view/nightly"),
        ("team/My%20Project", "team/My Project"),
        ("team/My Project", "team/My Project"),
        ("%C3%BCber/ma%C3%9F", "über/maß"),
        (f"{CI}/job/team/job/My%20Project/", "team/My Project"),
        (f"{CI}/blue/organizations/jenkins/team%2FMy%20Project/activity", "team/My Project"),
        (f"{CI}/job/12/", "12"),
        (f"{CI}/view/job/job/churn/", "churn"),
        (f"{CI}/job/v1.2/job/churn/", "v1.2/churn"),
        # Branch jobs, whose names hold escapes of their own:
        ("team/churn/feature%2Fx", "team/churn/feature%2Fx"),
        (f"{CI}/job/team/job/churn/job/feature%252Fx/", "team/churn/feature%2Fx"),
        (f"{CI}/job/team/job/churn/view/change-requests/job/PR-5/2/console", "team/churn/PR-5"),
        (f"{CI}/job/team/job/churn/job/feature%2Fx/", "team/churn/feature%2Fx"),
    ],
)
def test_names_that_look_like_addresses_and_the_other_way_round(text: str, name: str) -> None:
    assert job_name(text) == name
    assert job_name(name) == name


def test_the_path_of_jenkins_may_stand_before_it() -> None:
    assert job_name("tools/ci/job/team/job/churn", server=f"{CI}/tools/ci/") == "team/churn"
    assert job_name("tools/job/team/job/churn", server=CI) == "tools/team/churn"


@pytest.mark.parametrize(
    "text",
    [
        " / ",
        "",
        CI,
        f"{CI}/jenkins/",
        f"{CI}/view/all/",
        f"{CI}/job/",
        f"{CI}/queue/item/5/",
        f"{CI}/team/churn",
        f"{CI}/blue/pipelines",
        f"{CI}/blue/organizations/jenkins/pipelines/",
        "job/team/churn",
        "https://[::1/job/x",
        "https://ada:s3cret@ci.example.com/view/all/",
    ],
)
def test_what_names_no_job_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^JENKINS_JOB_NAME=.* names no job: write it as in team/project") as error:
        job_name(text)
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("name", ["team/\x1b[2J", "team/../x", "team/%0a/job", "job/team/job/..", "a\u202eb"])
def test_a_job_name_that_cannot_be_printed_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="JENKINS_JOB_NAME"):
        job_name(name)


@given(text=st.text() | st.builds("https://{}".format, st.text()) | st.text(alphabet="/jobview%2FAé:."))
def test_any_text_names_a_job_or_is_a_wrong_setting(text: str) -> None:
    with contextlib.suppress(SettingsError):
        assert job_name(text)


@pytest.mark.parametrize("base", [CI, f"{CI}/jenkins", "http://10.0.0.7:8080/tools/ci"])
@pytest.mark.parametrize(
    "page",
    [
        "",
        "/",
        "/job/team/job/churn/",
        "/job/team/job/churn/42/console?a=b#c",
        "/view/all/job/team/",
        "/view/all/",
        "/blue/organizations/jenkins/team%2Fchurn/activity",
        "/blue/pipelines",
        "/login?from=%2Fjob%2Fteam%2F",
        "/api/json?pretty=true",
    ],
)
def test_the_address_of_a_page_leads_to_jenkins_itself(base: str, page: str) -> None:
    settings = JenkinsSettings(url=f" {base}{page}", user="ci", token=SecretStr("t"), job=f"{base}/job/team/job/churn/")
    with Jenkins(settings) as jenkins:
        assert (jenkins.url, jenkins.job) == (f"{base}/", "team/churn")


@pytest.mark.parametrize("url", [f"{CI}/job", f"{CI}/job/", f"{CI}/viewer/x", f"{CI}/login-service/ci", "http://[::1"])
def test_any_other_address_stays_as_it_is(url: str) -> None:
    assert server_address(url) == url
