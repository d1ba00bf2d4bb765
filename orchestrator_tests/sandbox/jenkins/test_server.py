"""The sandbox's Jenkins answers, refuses and remembers as a real one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from orchestrator_sandbox.jenkins.actions import LIBRARY_COMMIT
from orchestrator_sandbox.jenkins.faults import JenkinsFault
from orchestrator_sandbox.jenkins.home import JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_tests.support.jenkins_client import COMMIT, REPOSITORY, UNTRIGGERED, Client, numbers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JenkinsServer]:
    with JenkinsServer(tmp_path / "jenkins") as server:
        yield server


@pytest.fixture
def client(server: JenkinsServer) -> Client:
    return Client(server)


def test_a_build_looks_like_jenkins_own(server: JenkinsServer, client: Client) -> None:
    server.create_job("team/project", UNTRIGGERED)
    server.add_build(
        "team/project", commit=COMMIT, timestamp=1_700_000_000_000, duration=4321,
        parameters={"WHO": "me"}, cause="Started by user ada",
    )  # fmt: skip
    build = client.json("job/team/job/project/1/")
    assert build["_class"] == "hudson.model.FreeStyleBuild"
    assert build["url"] == f"{server.url}job/team/job/project/1/"
    assert (build["number"], build["id"], build["displayName"]) == (1, "1", "#1")
    assert build["fullDisplayName"] == "team » project #1"
    assert (build["result"], build["building"]) == ("SUCCESS", False)
    assert (build["timestamp"], build["duration"]) == (1_700_000_000_000, 4321)
    by_class = {action.get("_class"): action for action in build["actions"]}
    assert {} in build["actions"]
    assert by_class["hudson.model.CauseAction"]["causes"] == [
        {
            "_class": "hudson.model.Cause$UserIdCause",
            "shortDescription": "Started by user ada",
            "userId": "ada",
            "userName": "ada",
        }
    ]
    assert by_class["hudson.model.ParametersAction"]["parameters"] == [
        {"_class": "hudson.model.StringParameterValue", "name": "WHO", "value": "me"}
    ]
    branch = "refs/remotes/origin/main"
    revision = {"SHA1": COMMIT, "branch": [{"SHA1": COMMIT, "name": branch}]}
    assert by_class["hudson.plugins.git.util.BuildData"] == {
        "_class": "hudson.plugins.git.util.BuildData",
        "buildsByBranchName": {
            branch: {
                "_class": "hudson.plugins.git.util.Build",
                "buildNumber": 1,
                "buildResult": None,
                "marked": revision,
                "revision": revision,
            }
        },
        "lastBuiltRevision": revision,
        "remoteUrls": [REPOSITORY],
        "scmName": "",
    }


def test_a_build_with_a_shared_library_has_two_build_data(server: JenkinsServer, client: Client) -> None:
    config = JobConfig(kind="pipeline", repository=REPOSITORY, triggered=False, library="https://x/lib.git")
    server.create_job("pipeline", config)
    server.add_build("pipeline", commit=COMMIT)
    answer = client.json("job/pipeline/1/", tree="actions[lastBuiltRevision[SHA1],remoteUrls]")
    assert answer["_class"] == "org.jenkinsci.plugins.workflow.job.WorkflowRun"
    assert [
        (action["remoteUrls"], action["lastBuiltRevision"]["SHA1"])
        for action in answer["actions"]
        if "remoteUrls" in action
    ] == [(["https://x/lib.git"], LIBRARY_COMMIT), ([REPOSITORY], COMMIT)]


def test_folders_and_branches_nest(server: JenkinsServer, client: Client) -> None:
    server.create_job("team/app", JobConfig(kind="multibranch"))
    server.create_job("team/app/feature%2Fx", JobConfig(kind="pipeline"))
    server.add_build("team/app/feature%2Fx")
    top = client.json("", tree="jobs[name,jobs[name,jobs[fullName,displayName,url,lastBuild[number]]]]")
    branch = top["jobs"][0]["jobs"][0]["jobs"][0]
    assert top["_class"] == "hudson.model.Hudson"
    assert top["jobs"][0]["_class"] == "com.cloudbees.hudson.plugins.folder.Folder"
    assert top["jobs"][0]["jobs"][0]["_class"].endswith(".WorkflowMultiBranchProject")
    assert branch["fullName"] == "team/app/feature%2Fx"
    assert branch["displayName"] == "feature/x"
    assert branch["url"] == f"{server.url}job/team/job/app/job/feature%252Fx/"
    assert requests.get(f"{branch['url']}1/api/json", auth=client.auth, timeout=10).json()["number"] == 1
    assert client.get("job/team/job/app/job/feature%2Fx/api/json").status_code == 404
    assert "sources" in client.json("job/team/job/app/")


def test_branches_carry_the_marks_of_their_branch_source(server: JenkinsServer, client: Client) -> None:
    server.create_job("app", JobConfig(kind="multibranch"))
    server.create_job("app/main", JobConfig(kind="pipeline", primary=True))
    server.create_job("app/PR-3", JobConfig(kind="pipeline", contributor="mallory"))
    marks = {
        job["name"]: [action["_class"].rpartition(".")[2] for action in job["actions"] if "Metadata" in str(action)]
        for job in client.json("job/app/", tree="jobs[name,actions[_class]]")["jobs"]
    }
    assert marks == {"main": ["PrimaryInstanceMetadataAction"], "PR-3": ["ContributorMetadataAction"]}
    actions = client.json("job/app/job/PR-3/", tree="actions[contributor]")["actions"]
    assert [action["contributor"] for action in actions if "contributor" in action] == ["mallory"]


def test_an_organization_holds_projects(server: JenkinsServer, client: Client) -> None:
    server.create_job("acme", JobConfig(kind="organization"))
    server.create_job("acme/app", JobConfig(kind="multibranch"))
    answer = client.json("job/acme/", tree="jobs[name]")
    assert answer["_class"] == "jenkins.branch.OrganizationFolder"
    assert [job["name"] for job in answer["jobs"]] == ["app"]


def test_permalinks_and_pretty_printing(server: JenkinsServer, client: Client) -> None:
    server.create_job("job", UNTRIGGERED)
    for result in ("SUCCESS", "UNSTABLE", "ABORTED", None):
        server.add_build("job", result=result)
    for link, number in {
        "lastBuild": 4,
        "lastCompletedBuild": 3,
        "lastSuccessfulBuild": 2,
        "lastStableBuild": 1,
        "lastUnsuccessfulBuild": 3,
    }.items():
        assert client.json(f"job/job/{link}/")["number"] == number
    assert client.get("job/job/lastFailedBuild/api/json").status_code == 404
    assert client.get("job/job/1/api/json?tree=number&pretty=true").text.count("\n") > 2
    assert server.finish_build("job", 4, "SUCCESS").result == "SUCCESS"
    assert client.json("job/job/lastStableBuild/")["number"] == 4


def test_unknown_jobs_and_builds_are_404_in_html(client: Client) -> None:
    for path in ("job/none/api/json", "job/none/1/api/json", "nothing", "queue/item/9/api/json"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["Content-Type"].startswith("text/html")
        assert answer.headers["X-Jenkins"]


def test_a_wrong_token_is_401(server: JenkinsServer) -> None:
    answer = requests.get(f"{server.url}api/json", auth=(server.access.user, "wrong"), timeout=10)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Jenkins"'
    assert "HTTP ERROR 401" in answer.text


def test_a_revoked_token_is_refused_and_a_restored_one_is_not(server: JenkinsServer, client: Client) -> None:
    token = server.access.token
    server.access.token = "another"
    assert client.get("api/json").status_code == 401
    server.access.token = token
    assert client.get("api/json").status_code == 200


def test_nobody_in_particular_is_sent_to_the_login(server: JenkinsServer) -> None:
    answer = requests.get(f"{server.url}job/x/api/json?tree=a", timeout=10)
    assert answer.status_code == 403
    assert "url=/login?from=%2Fjob%2Fx%2Fapi%2Fjson%3Ftree%3Da'" in answer.text
    assert answer.headers["X-You-Are-Authenticated-As"] == "anonymous"
    assert requests.get(f"{server.url}login", timeout=10).status_code == 200
    server.access.anonymous_read = True
    assert requests.get(f"{server.url}api/json", timeout=10).status_code == 200


def test_a_password_needs_a_crumb_to_change_something_and_a_token_does_not(
    server: JenkinsServer, client: Client
) -> None:
    server.create_job("job", UNTRIGGERED)
    assert client.post("job/job/build").status_code == 201
    with requests.Session() as session:
        session.auth = (server.access.user, server.access.password)
        refused = session.post(f"{server.url}job/job/build", timeout=10)
        assert refused.status_code == 403
        assert "No valid crumb was included in the request" in refused.text
        crumb = session.get(f"{server.url}crumbIssuer/api/json", timeout=10).json()
        header = {crumb["crumbRequestField"]: crumb["crumb"]}
        assert session.post(f"{server.url}job/job/build", headers=header, timeout=10).status_code == 201
        session.cookies.clear()
        assert session.post(f"{server.url}job/job/build", headers=header, timeout=10).status_code == 403
    assert requests.post(f"{server.url}job/job/build", timeout=10).status_code == 403


def test_a_restarted_server_keeps_builds_numbers_token_and_address(tmp_path: Path) -> None:
    with JenkinsServer(tmp_path) as server:
        server.create_job("team/job", UNTRIGGERED)
        server.add_build("team/job", commit=COMMIT)
        server.add_build("team/job", result=None)
        server.delete_build("team/job", server.add_build("team/job").number)
        before = server.env()
    with JenkinsServer(tmp_path) as server:
        assert server.env() == before
        assert before["JENKINS_JOB_NAME"] == "team/job"
        assert [(b.number, b.result) for b in server.builds("team/job")] == [(1, "SUCCESS"), (2, "ABORTED")]
        assert server.build("team/job", 1).commit == COMMIT
        server.create_job("team/job", UNTRIGGERED)
        assert server.add_build("team/job").number == 4


def test_a_job_that_is_deleted_and_made_again_counts_from_one(server: JenkinsServer, client: Client) -> None:
    server.create_job("job", UNTRIGGERED)
    server.create_job("template", UNTRIGGERED)
    server.add_build("job")
    server.add_build("job")
    assert client.post("job/job/2/doDelete").status_code == 302
    assert client.json("job/job/", tree="nextBuildNumber")["nextBuildNumber"] == 3
    assert client.post("job/job/doDelete").status_code == 302
    assert client.get("job/job/1/api/json").status_code == 404
    assert client.post("createItem", name="job", mode="copy", **{"from": "none"}).status_code == 400
    assert client.post("createItem", name="job", mode="copy", **{"from": "template"}).status_code == 302
    assert client.post("createItem", name="job", mode="copy", **{"from": "template"}).status_code == 400
    assert server.add_build("job").number == 1


def test_log_rotation_keeps_the_newest_builds(server: JenkinsServer, client: Client) -> None:
    server.create_job("job", JobConfig(keep=3))
    old = server.add_build("job", result=None)
    for _ in range(4):
        server.add_build("job")
    assert numbers(client.json("job/job/", tree="allBuilds[number]")) == [5, 4, 3]
    assert client.get("job/job/1/api/json").status_code == 404
    with pytest.raises(KeyError, match="job #1"):
        server.finish_build("job", old.number, "SUCCESS")


def test_it_misbehaves_when_asked_to(server: JenkinsServer, client: Client) -> None:
    with server.faults.answer_with(JenkinsFault(status=502, path="/api")):
        assert client.get("api/json").status_code == 502
        assert client.get("crumbIssuer/api/json").status_code == 200
    with server.faults.answer_with(JenkinsFault(status=200, body='{"jobs": [', content_type="application/json")):
        assert client.get("api/json").text == '{"jobs": ['
    with server.faults.answer_with(JenkinsFault(cut=True)), pytest.raises(requests.RequestException):
        client.get("api/json")
    with server.faults.answer_with(JenkinsFault(hang_up=True)), pytest.raises(requests.ConnectionError):
        client.get("api/json")
    with server.faults.answer_with(JenkinsFault(status=None, delay_seconds=60)), pytest.raises(requests.Timeout):
        requests.get(f"{server.url}api/json", auth=client.auth, timeout=0.2)
    assert client.get("api/json").status_code == 200


def test_a_push_must_be_announced_with_the_token(server: JenkinsServer) -> None:
    assert requests.get(f"{server.url}git/notifyCommit?url=x&token=é", timeout=10).status_code == 403
    assert requests.get(server.notify_url("x"), timeout=10).text == "Scheduled polling\n"
