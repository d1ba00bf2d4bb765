"""Which branches are trained: what TRAIN_BRANCHES names, else the primary branch; change requests only when named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pipeline.builds.branches import BranchChoice, choose_branches, is_change_request
from orchestrator.resources.jenkins import Build, JobKind, JobOverview, JobSummary

JOB = "team/churn"
REMOTE = "https://git.example.com/churn.git"


def branch(name: str, *, primary: bool = False, change_request: bool = False) -> JobSummary:
    encoded = name.replace("/", "%2F")
    return JobSummary(f"{JOB}/{encoded}", 1, (), whole=True, primary=primary, change_request=change_request)


def choose(
    *branches: JobSummary | str,
    patterns: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
    remote: str | None = REMOTE,
    head: str | None = None,
) -> BranchChoice:
    jobs = tuple(branch(each) if isinstance(each, str) else each for each in branches)
    overview = JobOverview(JobKind.MULTIBRANCH, jobs, remote)
    return choose_branches(overview, job=JOB, patterns=patterns, known=known, head=lambda _: head)


def trained(choice: BranchChoice) -> set[str]:
    return {name for name in choice.branches if choice.may_train(branch(name).job)}


def build(name: str | None, *, job: str = JOB, change_request: bool = False) -> Build:
    return Build(1, 1, "SUCCESS", job, 0, "", branch=name, change_request=change_request)


@pytest.mark.parametrize(
    ("patterns", "name", "matches"),
    [
        ("main", "main", True),
        ("main", "main2", False),
        ("main", "Main", False),
        ("release/*", "release/1.0", True),
        ("release/*", "release/1.0/fix", True),
        ("feature/?", "feature/x", True),
        ("v[0-9]*", "v2", True),
        ("main,dev*", "develop", True),
        ("*", "feature/x", True),
        ("*", "PR-41", False),
        ("*", "MR-7", False),
        ("*", "PR-41-merge", False),
        ("*", "pr-41", False),
        ("*", "34/1234/5", False),
        ("*-*", "PR-41", False),
        ("P*", "PR-41", False),
        ("PR*", "PR-41", False),
        ("?R-41", "PR-41", False),
        ("[P]R-41", "PR-41", False),
        ("main,*", "PR-41", False),
        ("PR-*", "PR-41", True),
        ("PR-4?", "PR-41", True),
        ("PR-41", "PR-41", True),
        ("MR-*", "PR-41", False),
        ("34/*", "34/1234/5", True),
        ("*", "PRODUCTION-1x", True),
        ("*", "PR-fix", True),
    ],
)
def test_patterns_are_matched_as_people_write_branches(patterns: str, name: str, matches: bool) -> None:
    assert trained(choose(name, patterns=tuple(patterns.split(",")))) == ({name} if matches else set())


@pytest.mark.parametrize("pattern", ["*", "login*", "l*", "*-fix"])
def test_a_change_request_by_any_name_is_reached_by_no_wildcard(pattern: str) -> None:
    request = branch("login-fix", change_request=True)
    assert trained(choose(request, patterns=(pattern,))) == set()
    assert trained(choose(request, patterns=("login-fix",))) == {"login-fix"}


def test_the_primary_branch_is_the_one_that_jenkins_marks() -> None:
    choice = choose("main", branch("trunk", primary=True), "PR-1", head="main")
    assert trained(choice) == {"trunk"}
    assert choice.remembered == ("trunk",)
    assert str(choice) == (
        "multibranch project, training trunk (the primary branch, as Jenkins marks it); "
        "not trained: 1 change request and 1 other branch"
    )


def test_several_primary_branches_are_all_trained() -> None:
    assert trained(choose(branch("1.x", primary=True), branch("2.x", primary=True), "main")) == {"1.x", "2.x"}


def test_without_a_mark_the_head_of_the_remote_counts() -> None:
    choice = choose("main", "develop", "PR-1", "PR-2", head="develop")
    assert trained(choice) == {"develop"}
    assert choice.remembered == ("develop",)
    assert f"training develop (the HEAD of {REMOTE}); not trained: 2 change requests and 1 other branch" in str(choice)


def test_a_head_that_jenkins_does_not_build_is_no_reason_to_train_another_branch() -> None:
    choice = choose("main", "fix", head="develop")
    assert trained(choice) == set()
    assert "nothing is trained: Jenkins has no branch develop, the HEAD of https://git" in str(choice)
    assert trained(choose("main", "fix", known=choice.remembered)) == set()


def test_a_head_that_cannot_be_asked_for_a_moment_changes_nothing() -> None:
    before = choose("main", "develop", head="develop")
    assert trained(choose("main", "develop", known=before.remembered)) == {"develop"}


@pytest.mark.parametrize("name", ["main", "master"])
def test_else_the_only_one_of_main_and_master(name: str) -> None:
    for remote in (REMOTE, None):
        choice = choose(name, "feature/x", "PR-1", remote=remote)
        assert trained(choice) == {name}
        assert choice.remembered == ()


@pytest.mark.parametrize(
    ("branches", "words"),
    [
        (["develop", "feature/x"], "there is neither main nor master"),
        (["main", "master", "x"], "both main and master exist"),
        (["PR-1", "MR-2"], "Jenkins shows change requests only"),
        ([branch("main", change_request=True)], "Jenkins shows change requests only"),
        ([branch("PR-1", primary=True)], "Jenkins shows change requests only"),
    ],
)
def test_without_evidence_nothing_is_trained_and_the_setting_is_named(
    branches: list[JobSummary | str], words: str
) -> None:
    choice = choose(*branches)
    assert trained(choice) == set()
    assert words in str(choice)
    assert "nothing is trained" in str(choice)
    assert "set TRAIN_BRANCHES to the branches to train" in str(choice)


def test_patterns_that_match_nothing_say_so() -> None:
    assert "nothing is trained: TRAIN_BRANCHES=release/* matches no branch" in str(
        choose(branch("main", primary=True), patterns=("release/*",))
    )


def test_a_remote_is_asked_only_where_it_decides() -> None:
    def never(remote: str) -> str | None:
        raise AssertionError(remote)

    for overview, patterns in (
        (JobOverview(JobKind.MULTIBRANCH, (branch("main", primary=True),), REMOTE), ()),
        (JobOverview(JobKind.MULTIBRANCH, (branch("main"),), REMOTE), ("main",)),
        (JobOverview(JobKind.MULTIBRANCH, (branch("PR-1"),), REMOTE), ()),
        (JobOverview(JobKind.MULTIBRANCH, (), REMOTE), ()),
        (JobOverview(JobKind.MULTIBRANCH, (branch("main"),), None), ()),
        (JobOverview(JobKind.PLAIN, (), REMOTE), ()),
    ):
        choose_branches(overview, job=JOB, patterns=patterns, known=(), head=never)


def test_a_build_of_a_change_request_is_not_trained_whatever_its_branch_is_called() -> None:
    job = f"{JOB}/main"
    choice = choose(branch("main", primary=True))
    assert choice.trains(build("main", job=job))
    assert not choice.trains(build("main", job=job, change_request=True))
    assert not choose("main", patterns=("m*",)).trains(build("main", job=job, change_request=True))
    assert choose("main", patterns=("main",)).trains(build("main", job=job, change_request=True))


def test_a_plain_job_has_all_its_builds_trained_unless_branches_are_named() -> None:
    plain = JobOverview(JobKind.PLAIN, (JobSummary(JOB, 1, (), whole=True),))

    def choice(*patterns: str) -> BranchChoice:
        return choose_branches(plain, job=JOB, patterns=patterns, known=(), head=lambda _: None)

    assert str(choice()) == ""
    assert all(choice().trains(build(name)) for name in ("main", "PR-1", None))
    assert choice("main").trains(build("main"))
    assert not choice("main").trains(build("feature/x"))
    assert not choice("main").trains(build(None))
    assert not choice("*").trains(build("PR-1"))
    assert str(choice("main", "x")) == "builds of main, x only (TRAIN_BRANCHES)"


@given(name=st.text(max_size=12), pattern=st.text(alphabet="*?[]!abPR-1/", max_size=6))
def test_any_name_meets_any_pattern(name: str, pattern: str) -> None:
    request = branch(name.replace("%", ""), change_request=True)
    choice = choose(request, patterns=(pattern,))
    assert str(choice)
    if pattern[:1] in ("*", "?", "["):
        assert not trained(choice) or pattern in choice.branches
    assert not trained(choose(request)) or not is_change_request(name)
