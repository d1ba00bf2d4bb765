"""Which version is the champion, in whatever order several writers register, set the alias, and are killed."""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowError, MlflowNotFound, TargetUnavailable
from orchestrator.names import CHAMPION_ALIAS, MlflowTag, VersionTag
from orchestrator.pipeline.models.champion import Candidate, Decision, Promotion, decide, look, settle
from orchestrator.pipeline.models.champion_asset import _remove_old
from orchestrator.pipeline.models.declared import ChampionRule, Goal
from orchestrator.pipeline.models.registration import register_all, remove_old, superfluous
from orchestrator.resources.mlflow import MetricPoint, Mlflow, ModelVersion, RegisteredModel, Run
from orchestrator.resources.targets import ModelFolder, Release
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.mlflow_client import client, post
from orchestrator_tests.support.real_models import RealModels

RULE = ChampionRule(pipeline="churn", metric="accuracy", goal=Goal.MAXIMIZE, model="churn")


def mlflow_run(run_id: str, accuracy: float | None, **tags: str) -> Run:
    return Run(
        id=run_id,
        name="",
        experiment_id="1",
        status="FINISHED",
        start_time=None,
        end_time=None,
        params={},
        latest={} if accuracy is None else {"accuracy": MetricPoint(accuracy, 0, 0)},
        tags={MlflowTag.CHECKS: "passed", MlflowTag.PIPELINE: "churn", **tags},
        active=True,
    )


@dataclass
class FakeRegistry:
    """A registry that does what MLflow's does, in memory."""

    runs: dict[str, Run] = field(default_factory=dict)
    listed: list[ModelVersion] = field(default_factory=list)
    alias: str = ""

    def add(self, accuracy: float | None, *, build: int = 0, tags: Mapping[str, str] | None = None) -> ModelVersion:
        """Train and register a model; the tags are its run's."""
        run = mlflow_run(f"r{len(self.runs)}", accuracy, **{MlflowTag.JENKINS_TIMESTAMP: str(build), **(tags or {})})
        self.runs[run.id] = run
        return self.register(run.id)

    def register(self, run_id: str, tags: Mapping[str, str] | None = None) -> ModelVersion:
        for version in self.listed:
            if version.run_id == run_id:
                return version
        version = ModelVersion("churn", str(len(self.listed) + 1), run_id, tags=dict(tags or {}))
        self.listed.append(version)
        return version

    def tag(self, version: ModelVersion, **tags: str) -> None:
        position = version.number - 1
        self.listed[position] = replace(version, tags={**self.listed[position].tags, **tags})

    def registered(self, name: str) -> RegisteredModel | None:
        return RegisteredModel(name, {CHAMPION_ALIAS: self.alias} if self.alias else {})

    def versions(self, name: str) -> list[ModelVersion]:
        return list(self.listed)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        assert alias == CHAMPION_ALIAS
        self.alias = version.version

    def run(self, run_id: str, *, deleted_too: bool = False) -> Run:
        if run_id not in self.runs:
            raise MlflowNotFound(run_id)
        return self.runs[run_id]

    def settled(self) -> str:
        """The champion, once chosen; empty: none."""
        champion = settle(self, self, RULE).champion
        return champion.version.version if champion else ""


def promoted(at: str = "2031-05-17T08:00:00+00:00", *, after: int = 0) -> str:
    return Promotion(at=at, after=after, by="ada", reason="it is fairer").text()


class TestTheBestOfThoseThatMayBeIt:
    def test_is_the_champion(self) -> None:
        registry = FakeRegistry()
        for accuracy in (0.8, 0.9, 0.85):
            registry.add(accuracy)
        assert registry.settled() == registry.alias == "2"
        decision = look(registry, registry, RULE)
        assert not decision.changed
        assert decision.runner_up is not None
        assert decision.runner_up.version.version == "3"

    def test_a_lower_value_may_be_the_better_one(self) -> None:
        registry = FakeRegistry()
        for accuracy in (0.8, 0.9, 0.7):
            registry.add(accuracy)
        assert settle(registry, registry, replace(RULE, goal=Goal.MINIMIZE)).champion is not None
        assert registry.alias == "3"

    def test_of_equal_ones_the_older_version_stays(self) -> None:
        registry = FakeRegistry()
        registry.add(0.9, build=9)
        assert registry.settled() == "1"
        registry.add(0.9, build=1)
        assert registry.settled() == "1"

    def test_a_backfilled_old_build_dethrones_nothing_better(self) -> None:
        registry = FakeRegistry()
        registry.add(0.9, build=9)
        registry.add(0.8, build=1)
        assert registry.settled() == "1"
        registry.add(0.95, build=2)
        assert registry.settled() == "3"

    @pytest.mark.parametrize(
        ("accuracy", "tags", "why"),
        [
            (0.99, {MlflowTag.CHECKS: "failed"}, "checks failed"),
            (0.99, {MlflowTag.CHECKS: ""}, "not checked"),
            (0.99, {MlflowTag.CHECKS: "PASSED "}, "not checked"),
            (0.99, {MlflowTag.EXPERIMENT: "wide"}, "an experiment"),
            (None, {}, "has no accuracy"),
            (float("nan"), {}, "has no accuracy"),
            (float("inf"), {}, "has no accuracy"),
            (1.7976931348623157e308, {}, "has no accuracy"),
        ],
    )
    def test_what_may_not_be_it_is_not(self, accuracy: float | None, tags: dict[str, str], why: str) -> None:
        registry = FakeRegistry()
        registry.add(0.5)
        registry.add(accuracy, tags=tags)
        assert registry.settled() == "1"
        assert look(registry, registry, RULE).candidates[1].unfit == why

    def test_an_experiment_may_say_that_it_may_be_it(self) -> None:
        registry = FakeRegistry()
        registry.add(0.5)
        registry.add(0.9, tags={MlflowTag.EXPERIMENT: "wide", MlflowTag.MAY_BE_CHAMPION: "true"})
        assert registry.settled() == "2"

    def test_a_run_that_is_gone_or_deleted_is_none(self) -> None:
        registry = FakeRegistry()
        registry.add(0.5)
        gone, deleted, failed = registry.add(0.9), registry.add(0.8), registry.add(0.7)
        del registry.runs[gone.run_id]
        registry.runs[deleted.run_id] = replace(registry.runs[deleted.run_id], active=False)
        registry.runs[failed.run_id] = replace(registry.runs[failed.run_id], status="FAILED")
        assert registry.settled() == "1"

    def test_a_champion_whose_run_was_deleted_stays_until_it_is_beaten(self) -> None:
        registry = FakeRegistry()
        first = registry.add(0.9)
        assert registry.settled() == "1"
        registry.runs[first.run_id] = replace(registry.runs[first.run_id], active=False)
        registry.add(0.8)
        assert registry.settled() == "1"
        registry.add(0.95)
        assert registry.settled() == "3"

    def test_what_somebody_had_made_the_champion_before_stays_until_it_is_beaten(self) -> None:
        registry = FakeRegistry()
        registry.add(0.9, tags={MlflowTag.CHECKS: "", MlflowTag.PIPELINE: ""})
        registry.alias = "1"
        registry.add(0.8)
        assert registry.settled() == "1"
        registry.add(0.95)
        assert registry.settled() == "3"

    def test_nothing_is_chosen_of_nothing(self) -> None:
        registry = FakeRegistry()
        assert registry.settled() == ""
        registry.add(None)
        assert registry.settled() == registry.alias == ""

    def test_of_two_versions_of_one_run_the_older_counts(self) -> None:
        registry = FakeRegistry()
        version = registry.add(0.9)
        registry.listed.append(ModelVersion("churn", "2", version.run_id))
        assert registry.settled() == "1"
        assert look(registry, registry, RULE).candidates[1].unfit == "of a run that has an older version"


class TestAPersonsWord:
    def test_a_promoted_version_stays_until_a_newer_build_beats_it(self) -> None:
        registry = FakeRegistry()
        first = registry.add(0.8, build=1)
        registry.add(0.9, build=2)
        assert registry.settled() == "2"
        registry.tag(first, **{VersionTag.PROMOTED: promoted(after=2)})
        assert registry.settled() == "1"
        registry.add(0.95, build=2)  # trained anew: no newer build
        assert registry.settled() == "1"
        registry.add(0.79, build=3)
        assert registry.settled() == "1"
        registry.add(0.81, build=4)
        assert registry.settled() == "5"
        assert registry.settled() == "5"

    def test_what_did_not_pass_can_be_promoted_by_a_person(self) -> None:
        registry = FakeRegistry()
        registry.add(0.9)
        failed = registry.add(None, tags={MlflowTag.CHECKS: "failed"})
        registry.tag(failed, **{VersionTag.PROMOTED: promoted()})
        assert registry.settled() == "2"

    def test_the_latest_promotion_counts(self) -> None:
        registry = FakeRegistry()
        first, second = registry.add(0.8), registry.add(0.9)
        registry.tag(first, **{VersionTag.PROMOTED: promoted("2031-05-17T09:00:00+00:00")})
        registry.tag(second, **{VersionTag.PROMOTED: promoted("2031-05-17T08:00:00+00:00")})
        assert registry.settled() == "1"

    def test_a_rejected_version_is_not_chosen_even_if_it_was_promoted(self) -> None:
        registry = FakeRegistry()
        registry.add(0.8)
        best = registry.add(0.9)
        registry.tag(best, **{VersionTag.REJECTED: "{}", VersionTag.PROMOTED: promoted()})
        assert registry.settled() == "1"
        registry.tag(best, **{VersionTag.REJECTED: ""})
        assert registry.settled() == "2"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "7",
            "[]",
            "null",
            '{"at": 7}',
            '{"at": "x", "after": 1}',
            '{"at": "2031-05-17", "after": "x"}',
            "[" * 100_000,
        ],
    )
    def test_a_promotion_that_cannot_be_read_is_none(self, text: str) -> None:
        assert Promotion.read(text) is None

    def test_it_is_read_as_it_is_written(self) -> None:
        promotion = Promotion(at="2031-05-17T08:00:00+00:00", after=7, by='a"da', reason="ä\n{")
        assert Promotion.read(promotion.text()) == promotion
        assert json.loads(promotion.text())["by"] == 'a"da'


@dataclass
class Writer:
    """One writer, as a sequence of steps between which others may act, and at each of which it may be killed."""

    registry: FakeRegistry
    run_id: str

    def steps(self) -> Generator[None, None, None]:
        """Register, then set the alias and read again until both agree: `settle`, cut into its single requests."""
        self.registry.register(self.run_id)
        yield
        store = _Steps()
        while True:
            versions = self.registry.versions("churn")
            yield
            alias = self.registry.alias
            yield
            store.seen, store.alias = versions, alias
            decision = look(store, self.registry, RULE)
            if decision.champion is None or not decision.changed:
                return
            self.registry.set_alias(decision.champion.version, CHAMPION_ALIAS)
            yield


@dataclass
class _Steps(FakeRegistry):
    """What a writer has read."""

    seen: list[ModelVersion] = field(default_factory=list)

    def versions(self, name: str) -> list[ModelVersion]:
        return self.seen


@settings(max_examples=400, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.5, 0.6, 0.7, None, float("nan")]), min_size=4, max_size=4),
    order=st.lists(st.integers(0, 3), max_size=80),
    killed=st.dictionaries(st.integers(0, 3), st.integers(1, 6), max_size=2),
)
def test_four_writers_in_any_order_end_with_the_right_champion(
    values: list[float | None], order: list[int], killed: dict[int, int]
) -> None:
    registry = FakeRegistry()
    for number, value in enumerate(values):
        registry.runs[f"r{number}"] = mlflow_run(f"r{number}", value)
    writers = {number: Writer(registry, f"r{number}").steps() for number in range(4)}
    taken = dict.fromkeys(writers, 0)
    for number in [*order, *(number for _ in range(200) for number in range(4))]:
        if number not in writers:
            continue
        taken[number] += 1
        if taken[number] == killed.get(number):
            del writers[number]  # by the kernel
        elif next(writers[number], "over") == "over":
            del writers[number]
    assert not writers
    if killed:  # the janitor fails it, and Dagster starts it again
        for number in killed:
            list(Writer(registry, f"r{number}").steps())
    finite = [
        (value, -version.number) for version in registry.listed if (value := _value(registry, version)) is not None
    ]
    assert registry.alias == (str(-max(finite)[1]) if finite else "")


def _value(registry: FakeRegistry, version: ModelVersion) -> float | None:
    value = registry.runs[version.run_id].metrics.get("accuracy")
    return value if value is not None and value == value else None


def test_the_model_of_the_writers_is_what_settle_does() -> None:
    """Request by request: else the test above proves nothing of `settle`."""

    class Logged(FakeRegistry):
        calls: list[str] = []  # noqa: RUF012 - of this test only

        def registered(self, name: str) -> RegisteredModel | None:
            self.calls.append("alias")
            return super().registered(name)

        def versions(self, name: str) -> list[ModelVersion]:
            self.calls.append("versions")
            return super().versions(name)

        def set_alias(self, version: ModelVersion, alias: str) -> None:
            self.calls.append("set")
            super().set_alias(version, alias)

    registry = Logged()
    registry.add(0.9)
    settle(registry, registry, RULE)
    assert registry.calls == ["versions", "alias", "set", "versions", "alias"]


def test_who_changes_the_alias_all_the_time_is_named() -> None:
    class Fought(FakeRegistry):
        def set_alias(self, version: ModelVersion, alias: str) -> None:
            self.alias = "2"

    registry = Fought()
    registry.add(0.9)
    registry.add(0.8)
    with pytest.raises(MlflowError, match="others change the champion of churn all the time"):
        settle(registry, registry, RULE)


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MlflowServer) -> Iterator[Mlflow]:
    with client(mlflow_server.url) as connected:
        yield connected


@pytest.fixture
def models(mlflow_server: MlflowServer) -> RealModels:
    return RealModels.on(mlflow_server)


def test_four_writers_at_once_on_a_real_server(models: RealModels) -> None:
    runs = [models.train(accuracy, build=build) for build, accuracy in enumerate((0.7, 0.9, 0.8, 0.9), start=1)]
    random.Random(7).shuffle(runs)

    def write(run_id: str) -> Decision:
        with client(models.server.url) as own:
            register_all(own, models.rule, [run_id])
            return settle(own.registry, own, models.rule)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, runs))
    with client(models.server.url) as own:
        decision = look(own.registry, own, models.rule)
        assert len(decision.candidates) == 4
        best = min(each.version.number for each in decision.candidates if each.value == 0.9)
        assert decision.was == str(best)
        assert not decision.changed


def test_models_are_registered_once_with_what_they_were_made_from(models: RealModels, mlflow: Mlflow) -> None:
    run_id = models.train(0.9, build=7)
    for _ in range(2):
        registration = register_all(mlflow, models.rule, [run_id])
    [version] = mlflow.registry.versions(models.rule.model)
    assert registration.versions == (version,)
    assert version.tags == {
        MlflowTag.PIPELINE: "churn",
        MlflowTag.PARTITION: "7",
        MlflowTag.JENKINS_BUILD: "7",
        MlflowTag.JENKINS_TIMESTAMP: "7",
        MlflowTag.SOURCE_COMMIT: "c0ffee",
        MlflowTag.DAGSTER_RUN: "run-7",
    }


def test_a_run_inside_another_has_the_commit_of_that(models: RealModels, mlflow: Mlflow) -> None:
    root = models.train(0.1, build=7)
    trial = models.train(0.9, build=7, tags={MlflowTag.TRAINING: root, MlflowTag.SOURCE_COMMIT: ""})
    post(models.server.url, "runs/delete-tag", run_id=trial, key=MlflowTag.SOURCE_COMMIT)
    [version] = register_all(mlflow, models.rule, [trial]).versions
    assert version.tags[MlflowTag.SOURCE_COMMIT] == "c0ffee"


def test_what_cannot_be_registered_is_named_and_costs_only_itself(models: RealModels, mlflow: Mlflow) -> None:
    deleted = models.train(0.9, build=1)
    post(models.server.url, "runs/delete", run_id=deleted)
    without, anothers = (
        models.train(0.9, build=2, model=False),
        models.train(0.9, build=3, tags={MlflowTag.PIPELINE: "x"}),
    )
    early, good = models.train(0.9, build=4), models.train(0.8, build=5)
    post(models.server.url, "runs/delete-tag", run_id=early, key=MlflowTag.CHECKS)
    registration = register_all(mlflow, models.rule, [deleted, without, anothers, early, good, "f" * 32])
    assert [version.run_id for version in registration.versions] == [good]
    words = ["is deleted", "has no model", "not of pipeline churn", "before there were checks", "no run with ID"]
    assert len(registration.left_out) == len(words)
    assert all(word in sentence for word, sentence in zip(words, registration.left_out, strict=True))
    assert settle(mlflow.registry, mlflow, models.rule).champion is not None


def test_old_versions_are_removed_but_not_what_is_in_use(models: RealModels, mlflow: Mlflow) -> None:
    runs = [models.train(accuracy, build=build) for build, accuracy in enumerate((0.9, 0.5, 0.6, 0.7, 0.8), start=1)]
    register_all(mlflow, models.rule, runs)
    decision = settle(mlflow.registry, mlflow, models.rule)
    mlflow.registry.set_alias(mlflow.registry.versions(models.rule.model)[1], "staging")
    assert remove_old(mlflow, models.rule, keep=1, needed={"4"}) == ["3"]
    assert [version.version for version in mlflow.registry.versions(models.rule.model)] == ["1", "2", "4", "5"]
    assert decision.champion is not None
    assert decision.champion.version.version == "1"


def test_what_a_target_holds_is_not_removed_and_nothing_where_that_is_not_known(
    models: RealModels, mlflow: Mlflow
) -> None:
    """As under `approval`, where the version in use may be older than all that stay."""
    runs = [models.train(accuracy, build=build) for build, accuracy in enumerate((0.7, 0.8, 0.9), start=1)]
    register_all(mlflow, models.rule, runs)
    decision = settle(mlflow.registry, mlflow, models.rule)
    assert decision.champion is not None

    class InUse:
        place = "a stand-in"
        holds: Release | None = None
        had: Release | None = None

        def state(self) -> Release | None:
            if self.holds is None and self.had is None:
                raise TargetUnavailable("the target does not answer")
            return self.holds

        def lost(self) -> Release | None:
            return self.had

        def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
            raise NotImplementedError

    target, needed = InUse(), {decision.champion.version.version}
    first = Release(model=models.rule.model, version="1", run_id=runs[0], pipeline="churn", deployment="lab")

    def remove() -> list[str]:
        return _remove_old(mlflow, models.rule, keep=1, needed=needed, target=lambda: target)

    assert remove() == []
    target.had = first
    assert remove() == ["2"]
    target.holds, target.had = first, None
    assert remove() == []
    target.holds = replace(first, version="3")
    assert remove() == ["1"]


def test_which_versions_are_superfluous() -> None:
    ours = {MlflowTag.PIPELINE: "churn"}
    versions = [
        ModelVersion("churn", "1", tags=ours),
        ModelVersion("churn", "2", tags={}),
        ModelVersion("churn", "3", tags={**ours, VersionTag.PROMOTED: "{}"}),
        ModelVersion("churn", "4", tags={**ours, VersionTag.REJECTED: "{}"}),
        ModelVersion("churn", "5", tags=ours),
        ModelVersion("churn", "6", tags=ours),
        ModelVersion("churn", "7", tags={**ours, f"{VersionTag.DEPLOYED_TO}c0ffee": "directory /srv"}),
        ModelVersion("churn", "8", tags={**ours, f"{VersionTag.DEPLOYED_TO}c0ffee": ""}),
        ModelVersion("churn", "10", tags=ours),
    ]

    def removed(keep: int) -> list[str]:
        old = superfluous(versions, keep=keep, pipeline="churn", aliased={"5"}, needed={"9"})
        return [version.version for version in old]

    assert removed(0) == []
    assert removed(1) == ["1", "6", "8"]
    assert removed(9) == []


def test_decide_is_pure() -> None:
    candidates = [Candidate(version=ModelVersion("churn", "1"), value=0.1)]
    assert decide(candidates, Goal.MAXIMIZE).champion == decide(candidates, Goal.MAXIMIZE).champion
