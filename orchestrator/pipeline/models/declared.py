"""What a defs.yaml says under `checks` and `champion`, as typed models; what cannot be meant is refused at load."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from orchestrator import names
from orchestrator.errors import SettingsError

MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,99}$"
"""MLflow takes neither `/` nor `:` in a registered model's name, and its searches know no escape for a quote."""

LONGEST_NAME = 200
"""Of a check in Dagster."""

_FOR_THE_DIRECTION = "write `goal: maximize` or `goal: minimize`"


class Goal(StrEnum):
    """Which value of a metric is the better one."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"

    def gain(self, value: float, over: float) -> float:
        """By how much a value is better than another one; negative: worse."""
        return value - over if self is Goal.MAXIMIZE else over - value


@dataclass(frozen=True)
class Tolerance:
    """How much worse than the champion a model may be.

    Attributes:
        amount: of the metric; or a share of the champion's value.
        relative: it is a share.
        text: as it is written.
    """

    amount: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, value: object) -> Tolerance:
        """Read `5%`, which is relative, or a number, which is absolute.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(value, Tolerance):
            return value
        text = str(value).strip()
        try:
            if isinstance(value, bool):
                raise ValueError
            amount = float(text.removesuffix("%"))
        except ValueError:
            raise ValueError(f"{text!r} is neither a share such as 5% nor a number such as 0.05") from None
        if not math.isfinite(amount) or amount < 0:
            raise ValueError(f"{text} cannot be how much worse a model may be; write 0 or more")
        return cls(amount / 100 if text.endswith("%") else amount, text.endswith("%"), text)

    def bound(self, champion: float, goal: Goal) -> float:
        """The worst value that is still good enough."""
        allowed = self.amount * abs(champion) if self.relative else self.amount
        return champion - allowed if goal is Goal.MAXIMIZE else champion + allowed


def _number(value: object) -> object:
    """Numbers as YAML gives them: `1e-3` is text to it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no bound: write a finite number")
    return number


Bound = Annotated[float, BeforeValidator(_number), WithJsonSchema({"type": ["number", "string"]})]
Share = Annotated[
    Tolerance,
    BeforeValidator(Tolerance.parse),
    PlainSerializer(lambda tolerance: tolerance.text),
    WithJsonSchema({"type": ["number", "string"], "description": "5% of the champion's value, or 0.05 of the metric"}),
]


class MetricCheck(BaseModel):
    """What one metric of a trained model has to be."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    lowest: Bound | None = Field(default=None, alias="min", description="the lowest value that passes")
    highest: Bound | None = Field(default=None, alias="max", description="the highest value that passes")
    worse_than_champion_by_at_most: Share | None = Field(
        default=None, description="how much worse than the champion it may be: 5% of its value, or 0.05 of the metric"
    )
    goal: Goal | None = Field(default=None, description="which value is better; default: as `min` or `max` says")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.lowest is None and self.highest is None and self.worse_than_champion_by_at_most is None:
            raise ValueError("this check asks for nothing: write `min`, `max` or `worse_than_champion_by_at_most`")
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ValueError(f"no value passes this check: min {self.lowest:g} is above max {self.highest:g}")
        if self.goal is not None and self._bound_says not in (None, self.goal):
            bound = "min" if self.lowest is not None else "max"
            raise ValueError(f"`{bound}` says {self._bound_says}, and `goal` says {self.goal}; take one of them out")
        return self

    @property
    def direction(self) -> Goal | None:
        """Which value is better; None: it does not say."""
        return self._bound_says or self.goal

    @property
    def _bound_says(self) -> Goal | None:
        """The direction of the only bound."""
        if (self.lowest is None) == (self.highest is None):
            return None
        return Goal.MAXIMIZE if self.lowest is not None else Goal.MINIMIZE


def _model_name(name: str) -> str:
    if not re.fullmatch(MODEL_PATTERN, name):
        raise ValueError(f"{name!r} cannot be a registered model's name here: letters, digits, spaces and . _ - only")
    return name


class ChampionBlock(BaseModel):
    """How the best of all trained models is found, and where it is registered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1, description="the metric that decides")
    goal: Goal | None = Field(default=None, description="which value is better; default: as its check says")
    model: Annotated[str, AfterValidator(_model_name)] | None = Field(
        default=None, description="the registered model's name in MLflow; default: the pipeline's name"
    )


@dataclass(frozen=True, kw_only=True)
class MetricRule:
    """One check of a metric.

    Attributes:
        name: of the check in Dagster.
        goal: None: no comparison needs it.
    """

    name: str
    metric: str
    check: MetricCheck
    goal: Goal | None


@dataclass(frozen=True, kw_only=True)
class ChampionRule:
    """How the champion is found.

    Attributes:
        model: the registered model's name.
    """

    pipeline: str
    metric: str
    goal: Goal
    model: str


@dataclass(frozen=True, kw_only=True)
class ModelRules:
    """All that a pipeline asks of its models.

    Attributes:
        champion: None: it has no champion.
    """

    metrics: tuple[MetricRule, ...] = ()
    champion: ChampionRule | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked at all."""
        return bool(self.metrics) or self.champion is not None


def model_rules(pipeline: str, checks: Mapping[str, MetricCheck], champion: ChampionBlock | None) -> ModelRules:
    """Put together what a defs.yaml says.

    Raises:
        SettingsError: a direction cannot be known, or there is no champion to compare with.
    """
    rules = tuple(_metric_rule(metric, check, champion) for metric, check in checks.items())
    by_name = defaultdict(list)
    for rule in rules:
        by_name[rule.name].append(rule.metric)
    for name, metrics in by_name.items():
        if len(metrics) > 1:
            raise SettingsError(f"checks: {' and '.join(metrics)} would be one check {name}; rename one of the metrics")
    return ModelRules(metrics=rules, champion=_champion_rule(pipeline, checks, champion))


def _metric_rule(metric: str, check: MetricCheck, champion: ChampionBlock | None) -> MetricRule:
    decides = champion is not None and champion.metric == metric
    goal = check.direction or (champion.goal if champion is not None and decides else None)
    if check.worse_than_champion_by_at_most is not None:
        if champion is None:
            raise SettingsError(
                f"checks: {metric} is to be compared with the champion, and there is none; add a block "
                f"`champion: {{metric: {metric}, goal: …}}`"
            )
        if goal is None:
            raise SettingsError(
                f"checks: whether more of {metric} is better cannot be known from its check; {_FOR_THE_DIRECTION}"
            )
    if champion is not None and decides and champion.goal not in (None, goal) and goal is not None:
        raise SettingsError(
            f"checks: the goal of {metric} is {goal}, but {champion.goal} under `champion`; say it once"
        )
    name = re.sub(r"[^A-Za-z0-9_]", "_", metric)[:LONGEST_NAME]
    if not name:
        raise SettingsError("checks: a check has no name of a metric")
    taken = (names.LOGGED_SOMETHING, names.LOADABLE_MODEL)
    return MetricRule(name=f"{name}_value" if name in taken else name, metric=metric, check=check, goal=goal)


def _champion_rule(
    pipeline: str, checks: Mapping[str, MetricCheck], champion: ChampionBlock | None
) -> ChampionRule | None:
    if champion is None:
        return None
    check = checks.get(champion.metric)
    goal = champion.goal or (check.direction if check else None)
    if goal is None:
        raise SettingsError(
            f"champion: whether more of {champion.metric} is better cannot be known; {_FOR_THE_DIRECTION}"
        )
    return ChampionRule(pipeline=pipeline, metric=champion.metric, goal=goal, model=champion.model or pipeline)
