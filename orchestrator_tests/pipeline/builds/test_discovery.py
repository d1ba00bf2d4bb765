"""The sensor's logic: every green build once, whatever Jenkins, the daemon and the clock do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from orchestrator.errors import JenkinsBadAnswer, JenkinsError, JenkinsNotFound, JenkinsUnavailable
from orchestrator.pipeline.builds import cursor as cursor_module
from orchestrator.pipeline.builds.cursor import Cursor, FoundSuccess, JobCursor
from orchestrator.pipeline.builds.discovery import TickResult, discover
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.pipeline.builds.settled import VanishedJob
from orchestrator.resources.jenkins import Build
from orchestrator_tests.support.jenkins_model import Job, Model

RESULTS = ("SUCCESS", "SUCCESS", "UNSTABLE", "FAILURE", "ABORTED", "NOT_BUILT")


class DrivenSensor:
    """The sensor as the daemon drives it: the cursor goes through JSON between ticks."""

    def __init__(self, model: Model, *, patterns: Sequence[str] = (), **limits: float) -> None:
        self.model = model
        self.patterns = patterns
        self.limits = Limits(**limits)  # type: ignore[arg-type]
        self.seconds_of_request = 1.0
        self.cursor: str | None = None
        self.launched: list[Build] = []
        self.registered: list[Build] = []

    def evaluate(self, *, unstable: bool = False) -> TickResult:
        return discover(
            self.model,
            Cursor.model_validate_json(self.cursor) if self.cursor else None,
            job=self.model.job,
            patterns=self.patterns,
            unstable=unstable,
            limits=self.limits,
            clock=lambda: self.model.requests * self.seconds_of_request,
        )

    def keep(self, found: TickResult) -> TickResult:
        self.cursor = found.cursor.dump()
        self.launched += found.launch
        self.registered += found.register
        return found

    def tick(self, *, unstable: bool = False) -> list[str]:
        """One tick; the names of what it launched."""
        return names(self.keep(self.evaluate(unstable=unstable)).launch)

    def until_read(self) -> None:
        while self.keep(self.evaluate()).unread:
            pass


def names(builds: list[Build] | tuple[Build, ...]) -> list[str]:
    return [f"{build.job.removeprefix('team/churn').strip('/')}#{build.number}" for build in builds]


@pytest.fixture
def model() -> Model:
    return Model(jobs={"team/churn": Job()})


@pytest.fixture
def sensor(model: Model) -> DrivenSensor:
    return DrivenSensor(model)


def test_the_first_tick_registers_the_past_and_trains_only_the_newest_success(
    model: Model, sensor: DrivenSensor
) -> None:
    for result in ("SUCCESS", "FAILURE", "SUCCESS", "SUCCESS", "UNSTABLE", "ABORTED"):
        model.add(result)
    assert sensor.tick() == ["#4"]
    assert names(sensor.registered) == ["#1", "#3", "#4"]


def test_the_newest_success_is_found_however_many_failures_follow_it(model: Model) -> None:
    model.add()
    for _ in range(130):
        model.add("FAILURE")
    sensor = DrivenSensor(model, page=10, builds=20)
    sensor.until_read()
    assert names(sensor.launched) == ["#1"]


def test_builds_that_ran_at_the_first_tick_are_trained_when_they_turn_green(model: Model, sensor: DrivenSensor) -> None:
    model.add()
    running = model.start()
    assert sensor.tick() == ["#1"]
    model.finish(running)
    assert sensor.tick() == ["#2"]
    assert sensor.tick() == []


def test_they_are_trained_even_where_the_past_takes_several_ticks(model: Model) -> None:
    running = model.start()
    for _ in range(6):
        model.add("FAILURE")
    sensor = DrivenSensor(model, page=2, builds=2)
    assert sensor.tick() == []
    model.finish(running)
    sensor.until_read()
    assert set(names(sensor.launched)) == {"#1"}


def test_a_build_that_finishes_late_is_still_trained(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    slow, quick = model.start(), model.start()
    model.finish(quick)
    assert sensor.tick() == ["#2"]
    for _ in range(100):
        model.add("FAILURE")
    assert sensor.tick() == []
    model.finish(slow)
    assert sensor.tick() == ["#1"]


def test_several_builds_between_two_ticks_are_all_trained_oldest_first(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    for _ in range(7):
        model.add()
    assert sensor.tick() == [f"#{number}" for number in range(1, 8)]
    assert sensor.tick() == []


@pytest.mark.parametrize("result", ["UNSTABLE", "FAILURE", "ABORTED", "NOT_BUILT"])
def test_builds_that_are_not_green_never_train(model: Model, sensor: DrivenSensor, result: str) -> None:
    sensor.tick()
    model.add(result)
    model.finish(model.start(), result)
    assert sensor.tick() == []
    assert sensor.registered == []


def test_a_setting_lets_unstable_builds_pass(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick(unstable=True)
    model.add("UNSTABLE")
    model.add("FAILURE")
    assert sensor.tick(unstable=True) == ["#1"]


def test_a_running_build_that_jenkins_deletes_is_forgotten(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    doomed, below = model.start(), model.start()
    sensor.tick()
    model.delete(doomed)
    for _ in range(30):
        model.add("FAILURE")
    model.delete(below)
    found = sensor.keep(sensor.evaluate())
    assert (found.launch, found.running) == ((), ())


def test_thousands_of_builds_are_caught_up_over_several_bounded_ticks(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    for _ in range(1800):
        model.add()
    rounds = 0
    while sensor.keep(sensor.evaluate()).unread:
        rounds += 1
        assert len(sensor.launched) <= 600 * rounds
    assert sorted(build.number for build in sensor.launched) == list(range(1, 1801))
    assert rounds == 3


def test_new_builds_are_trained_while_the_past_is_still_being_read(model: Model) -> None:
    for _ in range(100):
        model.add("FAILURE")
    sensor = DrivenSensor(model, page=10, builds=10)
    sensor.tick()
    model.add()
    assert sensor.tick() == ["#101"]


def test_known_history_costs_one_request(model: Model, sensor: DrivenSensor) -> None:
    for _ in range(3000):
        model.add()
    sensor.until_read()
    model.requests = 0
    sensor.tick()
    assert model.requests == 1


def test_catching_up_costs_pages_not_builds(model: Model, sensor: DrivenSensor) -> None:
    for _ in range(500):
        model.add()
    sensor.until_read()
    for _ in range(200):
        model.add()
    model.requests = 0
    sensor.until_read()
    assert model.requests == 1 + 5


def test_a_history_with_few_builds_left_is_read_in_few_requests(model: Model) -> None:
    for _ in range(4000):
        model.add("FAILURE")
    for build in list(model.everything())[5:-30]:
        model.delete(build)
    sensor = DrivenSensor(model, page=10, builds=20)
    sensor.until_read()
    assert model.requests < 15


def test_the_numbers_of_a_re_created_job_count_anew(model: Model, sensor: DrivenSensor) -> None:
    for _ in range(5):
        model.add()
    sensor.tick()
    model.delete_job()
    with pytest.raises(JenkinsNotFound):
        sensor.tick()
    for _ in range(3):
        model.add()
    assert sensor.tick() == ["#1", "#2", "#3"]
    assert sensor.tick() == []


def test_a_re_created_job_with_more_builds_than_before_is_trained_from_its_first_one(
    model: Model, sensor: DrivenSensor
) -> None:
    for _ in range(5):
        model.add()
    sensor.tick()
    model.delete_job()
    for _ in range(60):
        model.add()
    assert sensor.tick() == [f"#{number}" for number in range(1, 61)]


def test_a_re_created_job_is_followed_even_where_jenkins_clock_was_set_back(model: Model, sensor: DrivenSensor) -> None:
    for _ in range(5):
        model.add()
    sensor.tick()
    model.jobs[model.job] = Job()
    assert sensor.tick() == []
    model.now -= 10_000_000
    model.add()
    assert sensor.tick() == ["#1"]


def test_a_re_created_job_that_counts_as_far_as_before_is_noticed_by_a_thorough_tick(model: Model) -> None:
    for _ in range(5):
        model.add()
    sensor = DrivenSensor(model, light_ticks=3)
    sensor.tick()
    model.jobs[model.job] = Job()
    for _ in range(5):
        model.add()
    assert [sensor.tick() for _ in range(3)] == [[], [], []]
    assert sensor.tick() == [f"#{number}" for number in range(1, 6)]
    assert sensor.tick() == []


def test_it_is_noticed_at_once_where_one_of_its_builds_was_waited_for(model: Model, sensor: DrivenSensor) -> None:
    for _ in range(4):
        model.add()
    model.start()
    sensor.tick()
    model.jobs[model.job] = Job()
    for _ in range(5):
        model.add()
    assert sensor.tick() == [f"#{number}" for number in range(1, 6)]


def test_a_build_that_jenkins_shows_a_moment_after_its_number_is_trained(model: Model, sensor: DrivenSensor) -> None:
    model.add()
    sensor.tick()
    build = model.add()
    model.delete(build)
    found = sensor.keep(sensor.evaluate())
    assert (found.launch, found.running) == ((), ("team/churn #2",))
    model.jobs[model.job].builds[2] = build
    assert sensor.tick() == ["#2"]


def test_newest_builds_that_were_deleted_cost_a_few_requests_once(model: Model, sensor: DrivenSensor) -> None:
    model.add()
    sensor.tick()
    for _ in range(40):
        model.delete(model.add())
    for _ in range(3):
        sensor.tick()
    model.requests = model.records_loaded = 0
    assert sensor.tick() == []
    assert model.requests == 1
    assert model.records_loaded <= 1
    model.add()
    assert sensor.tick() == ["#42"]


def test_a_job_that_is_re_created_in_the_middle_of_a_tick_is_not_taken_for_the_past(model: Model) -> None:
    for _ in range(8):
        model.add("FAILURE")
    sensor = DrivenSensor(model, newest=1, page=2, builds=2)
    sensor.tick()

    def recreate() -> None:
        if model.requests == 4:
            model.jobs[model.job] = Job()
            for _ in range(5):
                model.add()

    model.before_request = recreate
    sensor.tick()
    sensor.until_read()
    sensor.until_read()
    assert {build.number for build in sensor.launched} == {1, 2, 3, 4, 5}


def test_a_jenkins_restored_from_a_backup_trains_nothing_twice(model: Model, sensor: DrivenSensor) -> None:
    builds = [model.add() for _ in range(10)]
    sensor.tick()
    for build in builds[7:]:
        model.delete(build)
    model.jobs[model.job].next_number = 8
    assert sensor.tick() == []
    model.add()
    assert sensor.tick() == ["#8"]


def test_a_clock_that_is_set_back_hides_nothing_and_repeats_nothing(model: Model, sensor: DrivenSensor) -> None:
    model.add()
    sensor.tick()
    model.now -= 10_000_000
    model.add()
    assert sensor.tick() == ["#2"]
    assert sensor.tick() == []


def test_an_error_in_the_middle_of_a_tick_changes_nothing(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    for _ in range(120):
        model.add()
    before = sensor.cursor

    def break_third() -> None:
        if model.requests % 4 == 0:
            raise JenkinsBadAnswer("HTML")

    model.before_request = break_third
    with pytest.raises(JenkinsBadAnswer):
        sensor.tick()
    assert sensor.cursor == before
    model.before_request = lambda: None
    assert len(sensor.tick()) == 120


def test_a_revoked_token_does_not_pass_for_deleted_builds(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    running = model.start()
    sensor.tick()
    for _ in range(30):
        model.add("FAILURE")
    sensor.tick()
    model.finish(running)
    requests = model.requests

    def hide_after_the_first_request() -> None:
        if model.requests > requests + 1:
            model.hidden = {model.job}

    model.before_request = hide_after_the_first_request
    with pytest.raises(JenkinsNotFound):
        sensor.tick()
    model.before_request = lambda: None
    model.hidden = set()
    assert sensor.tick() == ["#1"]


class TestSlowJenkins:
    """One that takes 20 s for each answer: a tick has time for two."""

    @pytest.fixture(params=[False, True], ids=["plain", "multibranch"])
    def model(self, request: pytest.FixtureRequest) -> Model:
        multibranch = bool(request.param)
        job = "team/churn/main" if multibranch else "team/churn"
        return Model(multibranch=multibranch, jobs={job: Job(primary=True)})

    @pytest.fixture
    def job(self, model: Model) -> str:
        return next(iter(model.jobs))

    @pytest.fixture
    def sensor(self, model: Model) -> DrivenSensor:
        sensor = DrivenSensor(model)
        sensor.seconds_of_request = 20.0
        return sensor

    def ticks(self, sensor: DrivenSensor, count: int) -> set[int]:
        """Launched in so many ticks, none of which asks more than there is time for."""
        launched = set()
        for _ in range(count):
            before = sensor.model.requests
            launched |= {build.number for build in sensor.keep(sensor.evaluate()).launch}
            assert sensor.model.requests - before <= 2
        return launched

    def test_the_past_is_registered_and_its_newest_success_trained(
        self, model: Model, job: str, sensor: DrivenSensor
    ) -> None:
        for _ in range(120):
            model.add(job=job)
        for _ in range(60):
            model.add("FAILURE", job)
        model.start(job)
        assert self.ticks(sensor, 14) == {120}
        assert len(sensor.registered) == 120

    def test_new_builds_are_trained_while_another_one_runs(self, model: Model, job: str, sensor: DrivenSensor) -> None:
        self.ticks(sensor, 1)
        running = model.start(job)
        self.ticks(sensor, 3)
        for number in (2, 3, 4):
            model.add(job=job)
            assert self.ticks(sensor, 1) == {number}
        model.finish(running)
        assert self.ticks(sensor, 3) == {1}

    def test_a_build_that_was_deleted_while_it_ran_holds_nothing_up(
        self, model: Model, job: str, sensor: DrivenSensor
    ) -> None:
        self.ticks(sensor, 1)
        model.delete(model.start(job))
        model.add(job=job)
        assert self.ticks(sensor, 24) == {2}
        assert sensor.keep(sensor.evaluate()).running == ()

    def test_a_branch_that_comes_back_is_trained(self, sensor: DrivenSensor) -> None:
        model = sensor.model
        model.multibranch = True
        model.jobs = {"team/churn/main": Job(primary=True), "team/churn/master": Job(primary=True)}
        for job in model.jobs:
            model.add(job=job)
        self.ticks(sensor, 6)
        model.hidden = {"team/churn/main"}
        self.ticks(sensor, 1)
        model.hidden = set()
        model.add(job="team/churn/main")
        assert self.ticks(sensor, 3) == {2}

    def test_one_that_never_answers_twice_in_time_is_named(self, model: Model, job: str, sensor: DrivenSensor) -> None:
        self.ticks(sensor, 1)
        sensor.seconds_of_request = 26.0
        self.ticks(sensor, 1)
        model.add(job=job)
        before = sensor.cursor
        with pytest.raises(JenkinsUnavailable, match=r"Jenkins took 26 s to answer: a tick .* needs two"):
            sensor.tick()
        assert sensor.cursor == before
        sensor.seconds_of_request = 20.0
        assert self.ticks(sensor, 1) == {1}


class PartlyBroken(Model):
    """Jenkins, with builds of the one job of which it says what cannot be."""

    @property
    def broken(self) -> set[int]:
        return {number for _, number in self.riddles}

    @broken.setter
    def broken(self, numbers: set[int]) -> None:
        self.riddles = {(self.job, number) for number in numbers}


@pytest.fixture
def partly_broken() -> PartlyBroken:
    return PartlyBroken(jobs={"team/churn": Job()})


def test_a_build_that_cannot_be_read_costs_that_build(partly_broken: PartlyBroken) -> None:
    sensor = DrivenSensor(partly_broken)
    sensor.tick()
    partly_broken.broken = {2}
    for _ in range(3):
        partly_broken.add()
    assert sensor.tick() == ["#1", "#3"]
    partly_broken.add()
    found = sensor.keep(sensor.evaluate())
    assert (names(found.launch), found.running) == (["#4"], ("team/churn #2",))


def test_it_is_asked_for_a_few_times_warned_of_twice_and_named_for_good(partly_broken: PartlyBroken) -> None:
    sensor = DrivenSensor(partly_broken, tries=5)
    sensor.tick()
    partly_broken.broken = {1}
    partly_broken.add()
    faults = [fault for _ in range(12) for fault in sensor.keep(sensor.evaluate()).faults]
    assert faults == ["team/churn #1: a riddle", "team/churn #1, given up after 5 tries: a riddle"]
    partly_broken.requests = 0
    found = sensor.keep(sensor.evaluate())
    assert (found.unreadable, found.running, partly_broken.requests) == (("team/churn #1",), (), 1)
    partly_broken.add()
    assert sensor.tick() == ["#2"]


@pytest.mark.parametrize("multibranch", [False, True], ids=["plain", "multibranch"])
@pytest.mark.parametrize("broken", [{5}, {1, 2, 3, 4, 5}], ids=["the newest", "all"])
@pytest.mark.parametrize("ticks", [0, 1, 6])
def test_a_past_that_cannot_be_read_at_first_is_not_taken_for_new(
    multibranch: bool, broken: set[int], ticks: int
) -> None:
    job = "team/churn/main" if multibranch else "team/churn"
    model = Model(multibranch=multibranch, jobs={job: Job(primary=True)})
    for _ in range(5):
        model.add(job=job)
    model.riddles = {(job, number) for number in broken}
    sensor = DrivenSensor(model)
    sensor.tick()
    past = list(sensor.launched)
    model.riddles = set()
    for _ in range(ticks):
        sensor.tick()
    model.add(job=job)
    model.add(job=job)
    for _ in range(6):
        sensor.tick()
    new = [build.number for build in sensor.launched[len(past) :]]
    assert new in ([6, 7], [5, 6, 7])  # the newest may count as new: it is later than all that could be read


def test_it_is_trained_once_it_can_be_read(partly_broken: PartlyBroken) -> None:
    sensor = DrivenSensor(partly_broken)
    sensor.tick()
    partly_broken.broken = {1}
    partly_broken.add()
    sensor.tick()
    sensor.tick()
    partly_broken.broken = set()
    assert sensor.tick() == ["#1"]
    assert sensor.tick() == []


def test_it_is_trained_where_it_can_be_read_alone(partly_broken: PartlyBroken) -> None:
    sensor = DrivenSensor(partly_broken)
    sensor.tick()
    partly_broken.broken = {1}
    partly_broken.readable_alone = True
    partly_broken.add()
    assert sensor.tick() == ["#1"]


@pytest.mark.parametrize("broken", [{70}, {1}, {35, 36}, set(range(61, 71)), set(range(11, 21)), set(range(1, 70))])
def test_unreadable_builds_of_the_past_cost_nothing_else(partly_broken: PartlyBroken, broken: set[int]) -> None:
    for _ in range(70):
        partly_broken.add()
    partly_broken.broken = broken
    sensor = DrivenSensor(partly_broken, page=10, builds=20, newest=5, tries=3, unreadable=100)
    sensor.until_read()
    readable = set(range(1, 71)) - broken
    assert {build.number for build in sensor.registered} == readable
    assert [build.number for build in sensor.launched] == [max(readable)]
    for _ in range(4):
        sensor.tick()
    assert set(sensor.evaluate().unreadable) == {f"team/churn #{number}" for number in broken}


@pytest.mark.parametrize("broken", [{3}, {1, 2}, {60}, set(range(31, 61)), set(range(2, 60))])
def test_unreadable_builds_among_many_new_ones_cost_nothing_else(partly_broken: PartlyBroken, broken: set[int]) -> None:
    sensor = DrivenSensor(partly_broken, page=10, builds=30, newest=5, tries=2, unreadable=100)
    sensor.tick()
    partly_broken.broken = broken
    for _ in range(60):
        partly_broken.add()
    sensor.until_read()
    for _ in range(40):
        sensor.tick()
    assert {build.number for build in sensor.launched} == set(range(1, 61)) - broken
    assert set(sensor.evaluate().unreadable) == {f"team/churn #{number}" for number in broken}


def test_a_build_that_fails_to_answer_alone_does_not_stop_the_others(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    running = model.start()
    sensor.tick()
    for _ in range(30):
        model.add("FAILURE")
    model.finish(running)
    ask = model.build

    def unwell(job: str, number: int) -> Build:
        if number == running.number:
            model._ask()
            raise JenkinsUnavailable("500")
        return ask(job, number)

    model.build = unwell  # type: ignore[method-assign]
    model.add()
    assert sensor.tick() == ["#32"]
    model.build = ask  # type: ignore[method-assign]
    assert sensor.tick() == ["#1"]


@pytest.fixture
def branches() -> Model:
    model = Model(multibranch=True)
    for branch in ("main", "feature%2Fx"):
        for _ in range(3):
            model.add(job=f"team/churn/{branch}")
    return model


def test_the_first_tick_trains_one_build_of_all_branches_to_train(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["main", "feature/*"])
    assert sensor.tick() == ["feature%2Fx#3"]
    assert len(sensor.registered) == 6


def test_a_branch_that_appears_later_is_all_new(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"])
    sensor.tick()
    branches.add(job="team/churn/fix")
    branches.add(job="team/churn/fix")
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["fix#1", "fix#2", "main#4"]


def test_a_branch_that_comes_back_is_not_trained_again(branches: Model) -> None:
    sensor = DrivenSensor(branches)
    sensor.tick()
    branches.hidden = {"team/churn/main"}
    assert sensor.tick() == []
    branches.hidden = set()
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["main#4"]


def test_only_the_primary_branch_is_trained_and_the_others_become_partitions() -> None:
    model = Model(multibranch=True, jobs={"team/churn/trunk": Job(primary=True)})
    for branch in ("trunk", "main", "feature%2Fx", "PR-41"):
        model.add(job=f"team/churn/{branch}")
    sensor = DrivenSensor(model)
    assert sensor.tick() == ["trunk#1"]
    assert names(sensor.registered) == ["trunk#1", "main#1", "feature%2Fx#1", "PR-41#1"]
    for branch in ("PR-41", "PR-42", "fix", "trunk", "main"):
        model.add(job=f"team/churn/{branch}")
    found = sensor.keep(sensor.evaluate())
    assert names(found.launch) == ["trunk#2"]
    assert names(found.left_out) == ["PR-41#2", "PR-42#1", "fix#1", "main#2"]
    assert len(sensor.registered) == 9


def test_the_newest_success_of_the_trained_branches_is_found_however_long_the_others_are() -> None:
    model = Model(multibranch=True)
    model.add(job="team/churn/main")
    for _ in range(40):
        model.add("FAILURE", job="team/churn/main")
        model.add(job="team/churn/PR-1")
    sensor = DrivenSensor(model, page=10, builds=20)
    sensor.until_read()
    assert names(sensor.launched) == ["main#1"]
    assert len(sensor.registered) == 41


def test_a_change_request_is_trained_where_a_pattern_names_it(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["main", "PR-*"])
    sensor.tick()
    branches.add(job="team/churn/PR-7")
    branches.add(job="team/churn/MR-7")
    assert sensor.tick() == ["PR-7#1"]


def test_a_change_request_by_another_name_is_known_by_its_mark_or_its_build(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"])
    sensor.tick()
    branches.jobs["team/churn/login"] = Job(contributor=True)
    branches.add(job="team/churn/login")
    build = branches.add(job="team/churn/main")
    branches.jobs[build.job].builds[build.number] = replace(build, change_request=True)
    found = sensor.keep(sensor.evaluate())
    assert (names(found.launch), names(found.left_out)) == ([], ["login#1", "main#4"])


def test_what_could_be_the_primary_branch_is_not_guessed() -> None:
    model = Model(multibranch=True)
    for branch in ("main", "master"):
        model.add(job=f"team/churn/{branch}")
    sensor = DrivenSensor(model)
    assert sensor.tick() == []
    assert "set TRAIN_BRANCHES" in str(sensor.evaluate().branches)
    assert len(sensor.registered) == 2
    sensor.patterns = ["master"]
    model.add(job="team/churn/main")
    model.add(job="team/churn/master")
    assert sensor.tick() == ["master#2"]


def test_the_head_of_the_remote_is_remembered_while_it_cannot_be_asked(branches: Model) -> None:
    branches.add(job="team/churn/develop")
    branches.remote, branches.heads = "https://git/churn", {"https://git/churn": "develop"}
    sensor = DrivenSensor(branches)
    assert sensor.tick() == ["develop#1"]
    branches.heads = {}
    branches.add(job="team/churn/develop")
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["develop#2"]


def test_a_plain_job_is_trained_whatever_its_builds_checked_out(model: Model, sensor: DrivenSensor) -> None:
    sensor.tick()
    for branch in ("main", "feature/x", None):
        build = model.add()
        model.jobs[model.job].builds[build.number] = replace(build, branch=branch)
    sensor_of_main = DrivenSensor(model, patterns=["main"])
    assert sensor_of_main.tick() == ["#1"]
    assert sensor.tick() == ["#1", "#2", "#3"]
    build = model.add()
    model.jobs[model.job].builds[build.number] = replace(build, branch="feature/x")
    model.add()
    assert sensor_of_main.tick() == ["#5"]


def test_only_so_many_vanished_branches_are_remembered_the_latest_ones(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"], vanished=1)
    sensor.until_read()
    for branch in ("team/churn/feature%2Fx", "team/churn/main"):
        branches.add("FAILURE", job="team/churn/main")
        sensor.tick()
        branches.hidden = {*branches.hidden, branch}
        sensor.tick()
    branches.hidden = set()
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["feature%2Fx#1", "feature%2Fx#2", "feature%2Fx#3", "main#6"]


def test_an_empty_list_of_branches_is_no_reason_to_forget_them(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"], vanished=1)
    sensor.until_read()
    branches.hidden = set(branches.jobs)
    sensor.tick()
    sensor.tick()
    branches.hidden = set()
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["main#4"]


def test_a_branch_that_is_re_created_while_it_is_hidden_is_all_new(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"])
    sensor.until_read()
    branches.hidden = {"team/churn/feature%2Fx"}
    sensor.tick()
    branches.jobs["team/churn/feature%2Fx"] = Job()
    branches.add(job="team/churn/feature%2Fx")
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["main#4"]
    branches.hidden = set()
    assert sensor.tick() == ["feature%2Fx#1"]


def fleet(count: int) -> Model:
    """A project with many branches, of which each has a name of common length and a few builds."""
    model = Model(multibranch=True, jobs={"team/churn/main": Job(primary=True)})
    for index in range(count):
        name = f"team/churn/feature%2FJIRA-{index}-some-topic"
        for _ in range(1 + index % 3):
            model.add(("SUCCESS", "FAILURE")[index % 2], job=name)
    model.add(job="team/churn/main")
    return model


@pytest.mark.services
@pytest.mark.parametrize(("count", "most_bytes"), [(1000, 8_000), (5000, 30_000)])
def test_a_cursor_of_thousands_of_branches_is_kilobytes_at_each_tick(count: int, most_bytes: int) -> None:
    model = fleet(count)
    sensor = DrivenSensor(model, builds=1_000_000, seconds=10**9, tick_seconds=10**10)
    sizes = []
    for limits in (Limits(builds=50), replace(sensor.limits, builds=10**6), replace(sensor.limits, builds=500)):
        sensor.limits = limits
        sensor.tick()
        sizes.append(len(sensor.cursor or ""))
    assert max(sizes) < most_bytes
    for index in range(0, count, count // 20):
        model.add(job=f"team/churn/feature%2FJIRA-{index}-some-topic")
    model.requests = 0
    found = sensor.keep(sensor.evaluate())
    assert len(found.left_out) == 20
    assert model.requests == 21
    assert len(sensor.cursor or "") < most_bytes
    model.hidden = set(model.jobs)
    sensor.tick()
    model.hidden = set()
    sensor.tick()
    model.requests = 0
    found = sensor.keep(sensor.evaluate())
    assert (found.register, model.requests) == ((), 1)
    assert len(sensor.cursor or "") < most_bytes


def test_branches_whose_digests_are_the_same_are_kept_by_name(branches: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor_module, "job_digest", lambda _: 7)
    sensor = DrivenSensor(branches, patterns=["*"])
    sensor.until_read()
    branches.add(job="team/churn/main")
    assert sensor.tick() == ["main#4"]
    branches.add(job="team/churn/feature%2Fx")
    assert sensor.tick() == ["feature%2Fx#4"]


@given(
    settled=st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2**33)),
    vanished=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**33), st.integers(0, 2**48))),
)
def test_what_is_packed_reads_back(settled: dict[int, int], vanished: list[tuple[int, int, int]]) -> None:
    rows = tuple(VanishedJob(*row) for row in sorted(vanished, key=lambda row: -row[2]))
    cursor = Cursor(version=2, job="j", settled=settled, vanished=rows, latest=5)
    assert Cursor.model_validate_json(cursor.dump()) == cursor


@pytest.mark.parametrize("packed", ["\u00e9", "zzzzzzzzzzz", "~~~~~~~~~~~~~~~~~~~~~~~~~~~~", 7, [1]])
def test_what_is_no_packed_table_is_refused(packed: object) -> None:
    for field in ("settled", "vanished"):
        with pytest.raises(ValidationError):
            Cursor.model_validate_json(json.dumps({"job": "j", field: packed}))


STORED = (
    '{"job":"team/churn","jobs":{"team/churn/main":{"newest":13,"latest":1700000020000,"pending":{"13":1700000020000},'
    '"gaps":[{"high":10,"low":8,"since":1700000007000,"skip":2,"launch":true},{"high":4,"skip":8,"search":true}]},'
    '"team/churn/feature%2Fx":{"newest":7,"latest":1700000014000,"gaps":[{"high":7,"search":true}]}},"searching":true}',
    '{"job":"team/churn","jobs":{"team/churn":{"newest":10,"latest":1700000010000,"pending":{"10":1700000010000},'
    '"gaps":[{"high":6,"skip":1,"back":2,"search":true}]}},"searching":true}',
    '{"job":"team/churn","jobs":{"team/churn/main":{"newest":4,"latest":1700000004000,"gaps":[{"high":1,"skip":2}]},'
    '"team/churn/feature%2Fx":{"newest":4,"latest":1700000008000,"gaps":[{"high":4,"search":true}]}},"searching":true,'
    '"first":{"number":2,"timestamp":1700000002000,"result":"SUCCESS","job":"team/churn/main","duration_ms":1234,'
    '"url":"http://jenkins.example.com/job/team/job/churn/job/main/2/",'
    '"commit":"0123456789abcdef0123456789abcdef01234567","branch":"main",'
    '"repository":"git://git.example.com/churn.git","parameters":{"alpha":"0.5"}}}',
)
"""Cursors as an earlier version wrote them, and as they stand in users' sensors."""


def test_a_cursor_of_an_earlier_version_means_what_it_meant() -> None:
    (stretch,) = Cursor.model_validate_json(STORED[1]).jobs["team/churn"].unread
    assert (stretch.high, stretch.skip, stretch.correction, stretch.awaits_success) == (6, 1, 2, True)
    newest_success = Cursor.model_validate_json(STORED[2]).newest_success
    assert newest_success is not None
    assert (newest_success.job, newest_success.number) == ("team/churn/main", 2)


def as_of_an_earlier_version(cursor: str, jobs: Sequence[str]) -> str:
    """A cursor as version 1 wrote it: each job by name, with its own latest timestamp."""
    read = Cursor.model_validate_json(cursor)
    known = {job: found for job in jobs if (found := read.known(job))}
    return read.model_copy(update={"version": 1, "jobs": known, "settled": {}, "vanished": (), "latest": 0}).dump()


@pytest.mark.parametrize("read", [False, True])
def test_after_an_upgrade_the_past_is_registered_once_more_and_nothing_is_trained_twice(
    branches: Model, read: bool
) -> None:
    sensor = DrivenSensor(branches, patterns=["*"], page=2, builds=2)
    sensor.tick()
    if read:
        sensor.until_read()
    waiting = branches.start("team/churn/main")
    sensor.tick()
    sensor.cursor = as_of_an_earlier_version(sensor.cursor or "", list(branches.jobs))
    launched = list(sensor.launched)
    sensor.registered = []
    branches.add(job="team/churn/feature%2Fx")
    sensor.until_read()
    branches.finish(waiting)
    sensor.until_read()
    assert {build.number for build in sensor.registered if build.job.endswith("main")} == {1, 2, 3, 4}
    assert {build.number for build in sensor.registered if build.job.endswith("x")} == {1, 2, 3, 4}
    anew = [build for build in sensor.launched if build not in launched]
    expected = {"feature%2Fx#4", "main#4"} | ({"feature%2Fx#3"} if not launched else set())
    assert set(names(anew)) == expected
    assert len(names(sensor.launched)) == len(set(names(sensor.launched)))


def test_a_branch_that_was_hidden_at_the_upgrade_is_not_trained_once_more(branches: Model) -> None:
    sensor = DrivenSensor(branches, patterns=["*"])
    sensor.until_read()
    sensor.cursor = as_of_an_earlier_version(sensor.cursor or "", list(branches.jobs))
    branches.hidden = {"team/churn/feature%2Fx"}
    sensor.until_read()
    branches.hidden = set()
    branches.add(job="team/churn/feature%2Fx")
    assert sensor.tick() == ["feature%2Fx#4"]


def test_the_newest_success_of_the_past_is_asked_for_again_before_it_is_trained(model: Model) -> None:
    """Between two ticks it stands in the cursor, which can be edited in Dagster's UI: only where it is."""
    oldest = model.add()
    for _ in range(6):
        model.add("FAILURE")
    sensor = DrivenSensor(model)
    sensor.cursor = (
        Cursor(version=2, job=model.job, jobs={model.job: JobCursor(newest=7, latest=model.now)}, searching=True)
        .model_copy(update={"newest_success": FoundSuccess.of(oldest)})
        .dump()
    )
    assert sensor.tick() == ["#1"]
    assert sensor.tick() == []
    assert "http" not in (sensor.cursor or "")


def test_a_newest_success_of_the_past_that_is_gone_is_named(model: Model, sensor: DrivenSensor) -> None:
    model.add("FAILURE")
    gone = FoundSuccess(job=model.job, number=9, timestamp=1)
    sensor.cursor = Cursor(version=2, job=model.job, searching=True, newest_success=gone).dump()
    found = sensor.keep(sensor.evaluate())
    assert found.launch == ()
    assert found.faults == ("team/churn #9, the newest success of the past, was deleted meanwhile",)
    assert sensor.keep(sensor.evaluate()).faults == ()


def test_another_job_name_begins_anew(model: Model, sensor: DrivenSensor) -> None:
    model.add()
    sensor.tick()
    model.jobs["team/other"] = model.jobs.pop("team/churn")
    model.job = "team/other"
    model.jobs["team/other"].builds = {}
    model.add()
    model.add()
    assert len(sensor.tick()) == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    cursor=st.fixed_dictionaries(
        {"job": st.just("team/churn") | anything},
        optional={
            "jobs": st.dictionaries(
                st.just("team/churn") | st.text(max_size=3),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "newest": st.integers(-5, 5) | anything,
                        "latest": st.integers(0, 10**19) | anything,
                        "pending": st.dictionaries(st.sampled_from(["1", "2", "9", "x"]), st.integers() | anything),
                        "tries": st.dictionaries(st.sampled_from(["1", "2", "9"]), st.integers()),
                        "unreadable": st.lists(st.integers()),
                        "gaps": st.lists(st.fixed_dictionaries({"high": st.integers(-3, 30)})) | anything,
                    },
                ),
                max_size=2,
            ),
            "searching": st.booleans() | anything,
            "first": anything,
            "primary": anything,
        },
    )
)
def test_any_cursor_is_one_or_refused_and_the_tick_goes_on(cursor: dict[str, object]) -> None:
    try:
        read = Cursor.model_validate_json(json.dumps(cursor))
    except ValidationError:
        return
    model = Model(jobs={"team/churn": Job()})
    for _ in range(3):
        model.add()
    found = discover(model, read, job=model.job, limits=Limits(page=2, builds=20))
    assert Cursor.model_validate_json(found.cursor.dump()) == found.cursor


Key = tuple[str, int, int]


def key_of(build: Build) -> Key:
    return (build.job, build.number, build.timestamp)


class AnyHistory(RuleBasedStateMachine):
    """Random histories of Jenkins and of the daemon, against what Jenkins really had."""

    @initialize(
        multibranch=st.booleans(),
        unstable=st.booleans(),
        newest=st.integers(1, 4),
        light_ticks=st.integers(0, 3),
        few=st.integers(0, 3),
        page=st.integers(2, 5),
        builds=st.integers(1, 12),
        seconds=st.integers(1, 9),
        past=st.lists(st.sampled_from((None, *RESULTS)), max_size=12),
        patterns=st.sampled_from(((), (), ("*",), ("main",), ("feature/?", "PR-*"))),
        marked=st.booleans(),
    )
    def begin(
        self,
        multibranch: bool,
        unstable: bool,
        newest: int,
        light_ticks: int,
        few: int,
        page: int,
        builds: int,
        seconds: int,
        past: list[str | None],
        patterns: tuple[str, ...],
        marked: bool,
    ) -> None:
        self.model = Model(multibranch=multibranch)
        branches = ("main", "feature%2Fx", "PR-7")
        self.names = [f"team/churn/{branch}" for branch in branches] if multibranch else ["team/churn"]
        self.model.jobs = {self.names[0]: Job(primary=marked)}
        self.trained = {
            (): {self.names[0]},
            ("*",): set(self.names[:2]),
            ("main",): {self.names[0]},
            ("feature/?", "PR-*"): set(self.names[1:]),
        }[patterns if multibranch else ()]
        self.sensor = DrivenSensor(
            self.model,
            patterns=patterns if multibranch else (),
            newest=newest,
            light_ticks=light_ticks,
            few=few,
            page=page,
            builds=builds,
            seconds=seconds,
            tries=1000,
        )
        self.unstable = unstable
        self.first_ticks = 0
        self.riddles: set[Key] = set()
        self.begun_anew: set[str] = set()
        self.begun_anew_since: set[str] = set()
        self.given_up: set[str] = set()
        self.history: set[Key] = set()
        self.unclear: set[Key] = set()
        self.truth: dict[Key, str | None] = {}
        for result in past:
            self.finish_one(self.model.start(self.names[0]), result)

    def finish_one(self, build: Build, result: str | None) -> None:
        if result:
            self.model.finish(build, result)

    def running(self) -> list[Build]:
        return [build for job in self.model.jobs.values() for build in job.builds.values() if not build.finished]

    def green(self, build: Build) -> bool:
        return build.succeeded(unstable=self.unstable)

    def happen(self, kind: str, random: Callable[[], float]) -> None:
        job = self.names[int(random() * len(self.names))]
        if kind in ("recreate", "restore"):  # an unreadable build of a job that begins anew is told from no other
            self.begun_anew.add(job)
            self.begun_anew_since.add(job)
            self.model.riddles = {riddle for riddle in self.model.riddles if riddle[0] != job}
        builds = self.model.jobs[job].newest_first() if job in self.model.jobs else []
        if kind == "start":
            for _ in range(1 + int(random() * 6)):
                self.finish_one(
                    self.model.start(job, after_ms=int(random() * 3)),
                    (None, *RESULTS)[int(random() * 7)],
                )
        elif kind == "finish" and (running := self.running()):
            self.model.finish(running[int(random() * len(running))], RESULTS[int(random() * 6)])
        elif kind == "delete" and builds:
            self.model.delete(builds[int(random() * len(builds))])
        elif kind == "rotate":
            for build in builds[int(random() * 8) :]:
                if build.finished:
                    self.model.delete(build)
        elif kind == "riddle" and builds and job not in self.begun_anew:
            build = builds[int(random() * len(builds))]
            self.model.riddles ^= {(build.job, build.number)}
            self.riddles.add(key_of(build))
        elif kind == "recreate" and job in self.model.jobs:
            self.model.now += 1
            self.model.jobs[job] = Job(primary=self.model.jobs[job].primary)
        elif kind == "restore" and builds:
            self.model.now += 1
            last = builds[int(random() * len(builds))].number
            for build in builds:
                if build.number > last:
                    self.model.delete(build)
            self.model.jobs[job].next_number = last + 1

    @rule(
        kind=st.sampled_from(
            ("start", "start", "finish", "finish", "delete", "rotate", "recreate", "restore", "riddle")
        ),
        random=st.randoms(use_true_random=True),
    )
    def jenkins_goes_on(self, kind: str, random: object) -> None:
        self.happen(kind, random.random)  # type: ignore[attr-defined]

    @rule()
    def a_branch_is_hidden_or_shown(self) -> None:
        self.model.hidden = set() if self.model.hidden or not self.model.multibranch else {self.names[0]}

    @rule(
        weather=st.sampled_from(("fair", "fair", "fair", "fair", "Jenkins is away", "the token is revoked")),
        fate=st.sampled_from(("kept", "kept", "kept", "killed before storing", "killed before the cursor")),
        during=st.dictionaries(
            st.integers(1, 6),
            st.sampled_from(("start", "finish", "delete", "rotate", "recreate", "restore", "fault")),
            max_size=2,
        ),
        random=st.randoms(use_true_random=True),
    )
    def a_tick(self, weather: str, fate: str, during: dict[int, str], random: object) -> None:
        self.model.away = weather == "Jenkins is away"
        self.model.revoked = weather == "the token is revoked"
        before = {key_of(build): build for build in self.model.everything()}
        first = self.sensor.cursor is None
        asked = 0

        def meanwhile() -> None:
            nonlocal asked
            asked += 1
            event = during.get(asked)
            if event == "fault":
                raise JenkinsBadAnswer("HTML")
            if event:
                self.happen(event, random.random)  # type: ignore[attr-defined]
            self.remember()

        self.model.before_request = meanwhile
        try:
            found = self.sensor.evaluate(unstable=self.unstable)
        except JenkinsError:
            return
        finally:
            self.model.before_request = lambda: None
        assert asked <= 1 + 2 * (self.sensor.limits.builds + 1)
        if fate == "killed before storing":
            return
        cursor = self.sensor.cursor
        self.given_up |= set(found.unreadable)
        self.sensor.keep(found)
        self.first_ticks += first
        if fate == "killed before the cursor":
            self.sensor.cursor = cursor
            return
        after = {key_of(build): build for build in self.model.everything()}
        if first:
            self.history = {key for key, build in before.items() if build.finished}
            newest = self.sensor.limits.newest
            top = {
                key_of(build)
                for name in self.model.jobs
                for build in self.model.jobs[name].newest_first()[: 1 if self.model.multibranch else newest]
            }
            self.unclear = {
                key
                for key in {**before, **after}
                if key not in self.history and (during or (found.unread and key not in top))
            }
        thorough = found.cursor.light_ticks == 0
        if thorough:
            self.begun_anew_since = set() if not during else self.begun_anew_since
        if not found.unread:
            # A job that was re-created, and counts as far as before, is noticed by a thorough tick.
            doubtful = set() if thorough else self.begun_anew_since
            before = {key: build for key, build in before.items() if build.job not in doubtful}
            self.check([build for key, build in before.items() if key in after and build.name not in found.running])

    def check(self, builds: list[Build]) -> None:
        """All that is green among these is found."""
        registered = {key_of(build) for build in self.sensor.registered}
        launched = {key_of(build) for build in self.sensor.launched}
        for build in builds:
            if self.green(build) and (build.job, build.number) not in self.model.riddles:
                if key_of(build) in self.riddles and key_of(build) not in registered:
                    assert build.name in self.given_up or key_of(build) in self.history | self.unclear
                    continue
                assert key_of(build) in registered
                if build.job in self.trained:
                    assert key_of(build) in launched or key_of(build) in self.history | self.unclear

    def remember(self) -> None:
        for job in self.model.jobs.values():
            for build in job.builds.values():
                self.truth[key_of(build)] = build.result

    @invariant()
    def only_green_builds_train_and_history_only_once(self) -> None:
        if not hasattr(self, "sensor"):
            return
        self.remember()
        allowed = ("SUCCESS", "UNSTABLE") if self.unstable else ("SUCCESS",)
        for build in self.sensor.registered:
            assert self.truth[key_of(build)] in allowed
        launched = {key_of(build) for build in self.sensor.launched}
        assert launched <= {key_of(build) for build in self.sensor.registered}
        assert {job for job, _, _ in launched} <= self.trained
        if self.sensor.cursor is not None:
            assert len(launched & self.history) <= self.first_ticks

    def teardown(self) -> None:
        if not hasattr(self, "sensor"):
            return
        self.model.away = self.model.revoked = False
        self.model.hidden = set()
        self.model.riddles = set()
        for build in self.running():
            self.model.finish(build)
        self.remember()
        self.sensor.limits = replace(self.sensor.limits, light_ticks=0)
        for _ in range(300):
            first = self.sensor.cursor is None
            try:
                found = self.sensor.keep(self.sensor.evaluate(unstable=self.unstable))
            except JenkinsNotFound:
                return
            if first:
                self.first_ticks += 1
                self.history = {key_of(build) for build in self.model.everything()}
            if not found.unread and not found.running:
                break
        else:
            pytest.fail("the ticks never come to rest")
        self.check(self.model.everything())
        self.only_green_builds_train_and_history_only_once()
        self.model.requests = 0
        assert self.sensor.tick(unstable=self.unstable) == []
        assert self.model.requests == 1


AnyHistory.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyHistory = AnyHistory.TestCase
