"""Which commit and repository a build stands for: proven by the build, or refused with the candidates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.resources.jenkins.checkout import (
    Checkout,
    branch_name,
    own_checkout,
)
from orchestrator.resources.jenkins.remotes import repository_key

SHA, HEAD, OTHER, THIRD = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)


STEPS = "https://git.example.com/build-steps.git"  # a library that is not called one


def data(
    commit: str, *remotes: str, branch: str = "refs/remotes/origin/main", head: str | None = None, name: str = ""
) -> dict[str, Any]:
    """The BuildData of one checkout; `head`: of the branch, where Jenkins merged it."""
    revision = {"SHA1": commit, "branch": [{"SHA1": head or commit, "name": branch}]}
    return {"lastBuiltRevision": revision, "remoteUrls": list(remotes), **({"scmName": name} if name else {})}


def found(
    *actions: dict[str, Any], job: str = "train", project: str | None = None, parameters: dict[str, str] | None = None
) -> Checkout:
    checkout = own_checkout(actions, job=job, project=project, parameters=parameters or {})
    assert checkout is not None
    return checkout


PULL = {"_class": "org.jenkinsci.plugins.github_branch_source.PullRequestSCMRevision", "merge": True, "pullHash": HEAD}
OWN = data(SHA, "https://git.example.com/ml/churn-model.git")
GITOPS = data(OTHER, "https://git.example.com/ops/gitops-deploy.git")
LIBRARY = data(THIRD, "https://git.example.com/ci/pipeline-library.git")


@pytest.mark.parametrize(
    ("actions", "job", "project"),
    [
        pytest.param(
            [data(SHA, "https://x/me/fork", "https://x/org/svc"), GITOPS],
            "train",
            "https://x/org/svc",
            id="MLPROJECT_URI is any of the remotes",
        ),
        pytest.param(
            [OWN, data(OTHER, "https://x/tools-hera-2"), {"revision": {"hash": SHA}}],
            "train",
            None,
            id="the revision decides",
        ),
        pytest.param(
            [{"revision": {"hash": SHA}}, data(OTHER, "https://x/ml-platform"), OWN],
            "ml-platform/churn/main",
            None,
            id="the revision is a fact, a name a guess",
        ),
        pytest.param(
            [{"revision": {"hash": SHA}}, OWN, data(OTHER, "https://x/deploy")],
            "team/churn/deploy",
            None,
            id="also when the last one is called like the job",
        ),
        pytest.param(
            [{"revision": {"origin": {"hash": SHA}}}, GITOPS, OWN], "train", None, id="a merge request's head"
        ),
        pytest.param(
            [data(OTHER, STEPS, branch="v2"), data(SHA, "git://x/recommender", branch="feature/speed")],
            "team/shop/feature%2Fspeed",
            None,
            id="the branch that the job is called after",
        ),
        pytest.param([OWN, LIBRARY], "train", None, id="a library is no project"),
        pytest.param([LIBRARY, OWN, GITOPS], "team/churn-model", None, id="called like the job"),
        pytest.param(
            [LIBRARY, OWN, GITOPS],
            "nightly",
            "ssh://git@mirror:7999/ml/churn-model.git#sub",
            id="called like MLPROJECT_URI",
        ),
        pytest.param(
            [data(OTHER, "https://git.example.com/ml/churn-model"), OWN],
            "nightly",
            None,
            id="one repository twice: the last",
        ),
        pytest.param(
            [data(SHA, "https://x/a", head=SHA), {"revision": PULL | {"pullHash": SHA}}],
            "x",
            None,
            id="a change request that needed no merge",
        ),
    ],
)
def test_what_the_build_proves_is_trained(actions: list[dict[str, Any]], job: str, project: str | None) -> None:
    checkout = found(*actions, job=job, project=project)
    assert (checkout.commit, checkout.doubt) == (SHA, None)


@pytest.mark.parametrize(
    ("actions", "project", "says"),
    [
        pytest.param(
            [{"revision": {"hash": HEAD}}, OWN], None, [HEAD, "churn-model"], id="a revision that no checkout has"
        ),
        pytest.param(
            [{"revision": {"hash": HEAD}}, LIBRARY, GITOPS],
            None,
            ["pipeline-library", "gitops-deploy"],
            id="only others were checked out",
        ),
        pytest.param([LIBRARY, OWN, GITOPS], None, ["churn-model", "gitops-deploy", "MLPROJECT_URI"], id="a tie"),
        pytest.param(
            [OWN, data(OTHER, "https://x/tools-hera-2")],
            None,
            ["tools-hera-2", "MLPROJECT_URI"],
            id="a library by no name",
        ),
        pytest.param(
            [OWN, GITOPS],
            "https://elsewhere/unknown",
            ["churn-model", "gitops-deploy"],
            id="MLPROJECT_URI is none of them",
        ),
        pytest.param(
            [{"revision": PULL}, data(SHA, "https://x/r", branch="PR-2", head=HEAD)],
            None,
            [SHA, "workspace", HEAD],
            id="a merge of Jenkins' own",
        ),
        pytest.param(
            [data(SHA, "https://x/r", head=HEAD)], None, [SHA, "workspace"], id="merge before build, in a plain job"
        ),
        pytest.param(
            [{"revision": PULL}, data(SHA, "https://x/r", branch="PR-2", head=HEAD), GITOPS],
            None,
            [SHA, "workspace"],
            id="and a later checkout",
        ),
        pytest.param([{"revision": PULL}], None, ["merge"], id="a merge that no checkout tells of"),
    ],
)
def test_what_it_does_not_prove_is_refused_with_the_candidates(
    actions: list[dict[str, Any]], project: str | None, says: list[str]
) -> None:
    checkout = found(*actions, project=project)
    assert checkout.commit is None
    assert checkout.doubt is not None
    assert all(word in checkout.doubt for word in says), checkout.doubt


@pytest.mark.parametrize(
    ("remote", "parameters", "usable"),
    [
        (
            "$GIT_BASE",
            {"GIT_BASE": "https://gerrit.opnfv.org/gerrit/$PROJECT", "PROJECT": "apex"},
            "https://gerrit.opnfv.org/gerrit/apex",
        ),
        (
            "${GIT_SERVER}:my-group/my-project.git",
            {"GIT_SERVER": "git@gitlab.example.com"},
            "git@gitlab.example.com:my-group/my-project.git",
        ),
        ("https://x/${TEAM}/r", {"TEAM": "ml"}, "https://x/ml/r"),
    ],
)
def test_a_remote_is_expanded_from_the_build_s_own_parameters(
    remote: str, parameters: dict[str, str], usable: str
) -> None:
    checkout = found(data(SHA, remote), parameters=parameters)
    assert (checkout.commit, checkout.remote, checkout.doubt) == (SHA, usable, None)


@pytest.mark.parametrize(
    "remote",
    [
        "$GIT_BASE",
        "https://x/${TEAM}/r",
        "/var/lib/jenkins/repos/churn.git",
        "file:///srv/git/churn.git",
        "FILE:///srv/git/churn.git",
        "../churn",
        "C:\\repos\\churn",
        "$LOOP",
    ],
)
def test_a_remote_that_only_jenkins_can_use_is_refused_unless_mlproject_uri_names_another(remote: str) -> None:
    parameters = {"LOOP": "$LOOP/$LOOP"}
    checkout = found(data(SHA, remote), parameters=parameters)
    assert checkout.remote is None
    assert "only Jenkins itself can use" in str(checkout.doubt)
    assert found(data(SHA, remote), project="https://x/r", parameters=parameters).doubt is None
    assert found(data(SHA, remote), project="#sub", parameters=parameters).doubt is not None


@pytest.mark.parametrize(
    ("revision", "change_request"),
    [
        ({"hash": SHA}, False),
        ({"pullHash": SHA, "merge": False}, True),
        ({"pullHash": SHA, "merge": True}, True),
        ({"origin": {"hash": SHA}, "target": {"hash": OTHER}}, True),
    ],
)
def test_a_change_request_is_known_by_its_revision(revision: dict[str, Any], change_request: bool) -> None:
    assert found({"revision": revision}, OWN).change_request is change_request


@pytest.mark.parametrize(
    "remote",
    [
        "ext::sh -c id",
        "ssh://-oProxyCommand=id/x",
        "https://[x",
        "https://user:p/Zq@host/x",
        "\x1b]0;Zq\x07https://host/x",
        "https://host/x\nZq",
        "https://host/\u202eZq",
        "ftp://u:Zq@host/x",
    ],
)
def test_a_remote_that_is_no_plain_address_is_refused_in_words_that_do_not_show_it(remote: str) -> None:
    checkout = found(data(SHA, remote))
    assert (checkout.commit, checkout.remote) == (SHA, None)
    assert "set MLPROJECT_URI" in str(checkout.doubt)
    assert "Zq" not in str(checkout.doubt)
    assert str(checkout.doubt).isprintable()
    assert found(data(SHA, remote), project="https://x/r").doubt is None
    assert found(data(SHA, remote, "https://host/x")).remote == "https://host/x"
    merged = found(data(SHA, remote, head=HEAD))
    assert merged.remote is None
    assert "Zq" not in f"{merged.doubt}{found(data(SHA, remote), OWN).doubt}"


@pytest.mark.parametrize("branch", ["\x1b[2J", "a\nb", "--upload-pack=id", "\u202ex", "\ud800", "x" * 1000])
def test_a_branch_that_cannot_be_printed_or_is_an_option_costs_the_branch(branch: str) -> None:
    checkout = found(data(SHA, "https://host/x", branch=f"refs/remotes/origin/{branch}"))
    assert (checkout.commit, checkout.remote, checkout.branch) == (SHA, "https://host/x", None)


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("remotes/origin/master", "master"),
        ("origin/HEAD", None),
        ("refs/remotes/origin/HEAD", None),
        ("HEAD", None),
        ("upstream/main", "main"),
        ("upstream/HEAD", None),
        ("origin1/test", "test"),
        ("remotes/fork/test", "test"),
        ("refs/heads/upstream/x", "upstream/x"),
        ("refs/remotes/origin/upstream/x", "upstream/x"),
        ("original/x", "original/x"),
        ("feature/origin/x", "feature/origin/x"),
    ],
)
def test_a_branch_has_one_name(name: str, branch: str | None) -> None:
    assert branch_name(name) == branch
    assert found(data(SHA, "https://x/r", branch=name)).branch == branch


def several(*branches: tuple[str, str]) -> dict[str, Any]:
    items = [{"SHA1": head, "name": name} for name, head in branches]
    return {"lastBuiltRevision": {"SHA1": SHA, "branch": items}, "remoteUrls": ["https://x/churn"]}


@pytest.mark.parametrize(
    ("branches", "job", "branch"),
    [
        pytest.param([("origin/HEAD", SHA), ("origin/master", SHA)], "train", "master", id="HEAD first"),
        pytest.param([("upstream/x", SHA), ("upstream/main", SHA)], "train", "main", id="main behind another one"),
        pytest.param([("origin/main", HEAD), ("origin/x", SHA)], "train", "x", id="the one that is at the commit"),
        pytest.param([("origin/b", SHA), ("origin/a", SHA)], "train", "b", id="nothing tells them apart"),
        pytest.param([("main", SHA), ("feature/x", SHA)], "team/churn/feature%2Fx", "feature/x", id="the job's own"),
        pytest.param([("upstream/x", SHA)], "team/churn/upstream%2Fx", "upstream/x", id="it begins like a remote"),
        pytest.param([("--exec", SHA), ("origin/main", SHA)], "train", "main", id="one that is no branch"),
    ],
)
def test_of_several_branches_at_a_commit_the_best_is_named(
    branches: list[tuple[str, str]], job: str, branch: str
) -> None:
    checkout = found(several(*branches), job=job)
    assert (checkout.commit, checkout.branch) == (SHA, branch)


@pytest.mark.parametrize("origin", [{"hash": SHA}, {"hash": SHA.upper(), "head": {}}])
def test_a_merge_request_without_a_checkout_has_the_commit_of_its_origin(origin: dict[str, Any]) -> None:
    checkout = found({"revision": {"origin": origin, "target": {"hash": HEAD}}}, job="team/churn/MR-7")
    assert (checkout.commit, checkout.change_request) == (SHA, True)


remotes = st.text(st.sampled_from("ab$/{}:@.#?[]\\ \x00"), max_size=20)


@given(remote=remotes, parameters=st.dictionaries(st.sampled_from(["a", "b", "ab"]), remotes))
def test_any_remote_is_read_or_refused(remote: str, parameters: dict[str, str]) -> None:
    checkout = own_checkout([data(SHA, remote)], job="a/b", project=remote, parameters=parameters)
    assert checkout is None or checkout.commit == SHA
    repository_key(remote)
