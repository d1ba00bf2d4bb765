"""The checks of `P/trained_model`: thresholds, the champion's values, a model that can be loaded.

They are evaluated in the training's own run. The verdict stands as a tag on the MLflow run, because Dagster's blocking
holds within one run only: the champion reads it there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from orchestrator import names
from orchestrator.errors import MlflowError
from orchestrator.pipeline.models import loadable
from orchestrator.pipeline.models.declared import MetricRule, ModelRules
from orchestrator.pipeline.models.loadable import LoadState
from orchestrator.printable import printable
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.resources.mlflow.history import INFINITE

MOST_NAMED = 10
"""Metrics that a sentence names."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What a model is compared with.

    Attributes:
        champion: the champion's run; None: there is no champion yet, or it could not be looked at.
        version: its version.
        fault: why it could not be looked at; empty: it was, or nobody asked.
    """

    champion: Run | None = None
    version: str = ""
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How one check ended.

    Attributes:
        name: of the check.
        sentence: why, for people.
        facts: value, bounds, the champion's value.
        must_pass: a run whose model fails it is red.
    """

    name: str
    passed: bool
    sentence: str
    facts: Mapping[str, dg.MetadataValue] = field(default_factory=dict)
    must_pass: bool = True

    def result(self, asset: dg.AssetKey) -> dg.AssetCheckResult:
        """For Dagster."""
        return dg.AssetCheckResult(
            check_name=self.name,
            asset_key=asset,
            passed=self.passed,
            severity=dg.AssetCheckSeverity.ERROR if self.must_pass else dg.AssetCheckSeverity.WARN,
            description=self.sentence,
            metadata=dict(self.facts),
        )


def check_specs(rules: ModelRules, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """What Dagster is told of the checks before they are evaluated."""
    specs = [
        dg.AssetCheckSpec(rule.name, asset=asset, description=_meaning(rule), blocking=True) for rule in rules.metrics
    ]
    if rules.any:
        meaning = (
            "The model's MLflow run has a model whose files are all there, and which could be loaded in the training's "
            "own environment, before its instance was given back. (No model is loaded here.)"
        )
        must = rules.champion is not None
        specs.append(dg.AssetCheckSpec(names.LOADABLE_MODEL, asset=asset, description=meaning, blocking=must))
    return specs


def judge(mlflow: Mlflow, run: Run, rules: ModelRules) -> list[Judgement]:
    """Evaluate all checks of a trained model, and keep the verdict as tags of its MLflow run.

    A check that cannot look has not passed, and says why.

    Args:
        mlflow: asked with its own patience.
        run: the run that holds the model.
        rules: what is asked.

    Raises:
        MlflowError: the verdict could not be kept.
    """
    if not rules.any:
        return []
    compared = comparison(mlflow, rules) if rules.metrics else Comparison()
    judgements = [judge_metric(rule, run, compared) for rule in rules.metrics]
    judgements.append(_judge_loadable(mlflow, run, must_pass=rules.champion is not None))
    failed = [judgement for judgement in judgements if judgement.must_pass and not judgement.passed]
    reason = "; ".join(judgement.sentence for judgement in failed)
    verdict = {names.MlflowTag.CHECKS: "failed" if failed else "passed", names.MlflowTag.CHECKS_REASON: reason}
    mlflow.set_tags(run.id, verdict)
    return judgements


def failure(judgements: Sequence[Judgement], *, partition: str) -> str:
    """Why the run is red, in one sentence; empty: it is not."""
    failed = [judgement for judgement in judgements if judgement.must_pass and not judgement.passed]
    if not failed:
        return ""
    reasons = "; ".join(judgement.sentence for judgement in failed)
    which = "a check" if len(failed) == 1 else f"{len(failed)} checks"
    return f"build {partition} is trained and recorded, but its model does not pass {which}: {reasons}"


def comparison(mlflow: Mlflow, rules: ModelRules) -> Comparison:
    """The run of the present champion."""
    if rules.champion is None:
        return Comparison()
    version = ""
    try:
        registry = mlflow.registry
        registered = registry.registered(rules.champion.model)
        version = registered.aliases.get(names.CHAMPION_ALIAS, "") if registered else ""
        if not version:
            return Comparison()
        run_id = registry.version(rules.champion.model, version).run_id
        if not run_id:
            fault = f"version {version} of {rules.champion.model}, the champion, names no MLflow run"
            return Comparison(version=version, fault=f"{fault}; promote one that has metrics")
        return Comparison(mlflow.run(run_id, deleted_too=True), version)
    except MlflowError as error:
        return Comparison(version=version, fault=f"the champion cannot be looked at: {error}")


def judge_metric(rule: MetricRule, run: Run, compared: Comparison) -> Judgement:
    """Whether a metric of a run is what it has to be. Pure."""
    value = finite(run, rule.metric)
    check, faults, remarks = rule.check, list[str](), list[str]()
    facts: dict[str, dg.MetadataValue] = {"metric": dg.MetadataValue.text(printable(rule.metric)[:200])}
    for name, bound in (("min", check.lowest), ("max", check.highest)):
        if bound is not None:
            facts[name] = dg.MetadataValue.float(bound)
    if value is None:
        faults.append(_missing(rule.metric, run))
    else:
        facts["value"] = dg.MetadataValue.float(value)
        if check.lowest is not None and value < check.lowest:
            faults.append(f"{rule.metric} {value:.6g} is below min {check.lowest:.6g}")
        if check.highest is not None and value > check.highest:
            faults.append(f"{rule.metric} {value:.6g} is above max {check.highest:.6g}")
    if check.worse_than_champion_by_at_most is not None:
        _compare(rule, value, compared, facts, faults, remarks)
    if data := evaluation_data(run):
        facts["evaluation data"] = dg.MetadataValue.text(printable(data))
    if warning := other_data(run, compared.champion):
        facts["warning"] = dg.MetadataValue.text(printable(warning))
        remarks.append(f"warning: {warning}")
    name = printable(rule.metric)[:200]
    good = f"{name} {value:.6g} is as it has to be" if value is not None else ""
    sentence = "; ".join([*(faults or [good]), *remarks])
    return Judgement(name=rule.name, passed=not faults, sentence=printable(sentence)[:2000], facts=facts)


def _compare(
    rule: MetricRule,
    value: float | None,
    compared: Comparison,
    facts: dict[str, dg.MetadataValue],
    faults: list[str],
    remarks: list[str],
) -> None:
    tolerance, goal = rule.check.worse_than_champion_by_at_most, rule.goal
    if tolerance is None or goal is None:
        return
    facts["worse than the champion by at most"] = dg.MetadataValue.text(tolerance.text)
    if compared.version:
        facts["champion's version"] = dg.MetadataValue.text(compared.version)
    if compared.fault:
        faults.append(compared.fault)
        return
    if compared.champion is None:
        remarks.append("there is no champion yet to compare with")
        return
    theirs = finite(compared.champion, rule.metric)
    if theirs is None:
        remarks.append(f"nothing to compare with: the champion, version {compared.version}, has no {rule.metric}")
        return
    bound = tolerance.bound(theirs, goal)
    facts |= {"champion's value": dg.MetadataValue.float(theirs), "bound": dg.MetadataValue.float(bound)}
    if value is not None and goal.gain(value, bound) < 0 and not math.isclose(value, bound, rel_tol=1e-9):
        faults.append(
            f"{rule.metric} {value:.6g} is worse than {bound:.6g}, which is {tolerance.text} worse than {theirs:.6g} "
            f"of the champion, version {compared.version}"
        )


def other_data(run: Run, champion: Run | None) -> str:
    """What makes a comparison doubtful, in one sentence; empty: nothing that is known."""
    if champion is None or champion.id == run.id:
        return ""
    mine, theirs = evaluation_data(run), evaluation_data(champion)
    if mine == theirs:
        return ""
    return f"not the same evaluation data: {mine or 'unknown'}, and {theirs or 'unknown'} of the champion"


def finite(run: Run, metric: str) -> float | None:
    """A metric's value; None: there is none, or it is NaN or infinite, which MLflow's databases keep as the largest."""
    value = run.metrics.get(metric)
    return value if value is not None and math.isfinite(value) and abs(value) < INFINITE else None


def evaluation_data(run: Run) -> str:
    """Names and digests of the data that a run was evaluated on, as it says; empty: it does not."""
    found = {
        f"{dataset.name} {dataset.digest}"
        for dataset in run.datasets
        if not dataset.context.lower().startswith("train")
    }
    return ", ".join(sorted(found))[:1000]


def _missing(metric: str, run: Run) -> str:
    if metric in run.metrics:
        return f"{metric} is {run.metrics[metric]}, which is no number to compare"
    has = ", ".join(sorted(run.metrics)[:MOST_NAMED]) or "none"
    return f"MLflow run {run.id} has no metric {metric}; it has: {has}"


def _judge_loadable(mlflow: Mlflow, run: Run, *, must_pass: bool) -> Judgement:
    try:
        found = loadable.look(mlflow.registry, run)
    except MlflowError as error:
        fault = f"the files of its model cannot be looked at: {error}"
        return Judgement(name=names.LOADABLE_MODEL, passed=False, sentence=fault, must_pass=must_pass)
    facts: dict[str, dg.MetadataValue] = {}
    if found.model is not None:
        facts["model"] = dg.MetadataValue.text(printable(found.model.name)[:200])
    if found.fault:
        sentence = printable(found.fault)[:2000]
        return Judgement(name=names.LOADABLE_MODEL, passed=False, sentence=sentence, facts=facts, must_pass=must_pass)
    facts["flavors"] = dg.MetadataValue.text(printable(", ".join(found.flavors))[:500])
    facts["signature"] = dg.MetadataValue.bool(found.has_signature)
    trial = found.trial
    if trial.state is LoadState.FAILED:
        # The last line of a traceback is what went wrong; the lines before it say where.
        lines = [line for line in trial.reason.splitlines() if line.strip()] or ["it does not say why"]
        facts["last lines"] = dg.MetadataValue.md("\n".join(f"    {printable(line)}" for line in lines))
        sentence = f"the model could not be loaded in the training's environment: {lines[-1].strip()}"
        sentence = printable(sentence)[:2000]
        return Judgement(name=names.LOADABLE_MODEL, passed=False, sentence=sentence, facts=facts, must_pass=must_pass)
    facts["loaded"] = dg.MetadataValue.bool(trial.state is LoadState.LOADED)
    if trial.state is LoadState.LOADED:
        facts["predicted"] = dg.MetadataValue.bool(trial.predicted)
        answered = "and answered its input example" if trial.predicted else "and has no input example to answer"
        environment = f"environment (Python {trial.python})" if trial.python else "environment"
        sentence = f"the model was loaded in the training's {environment} in {trial.seconds:.3g} s {answered}"
    else:
        sentence = f"all files of the model are there; it was not loaded, because {trial.reason}"
    if not found.has_signature:
        sentence += "; it has no signature: log it with an input_example, and it says what it takes"
    sentence = printable(sentence)[:2000]
    return Judgement(name=names.LOADABLE_MODEL, passed=True, sentence=sentence, facts=facts, must_pass=must_pass)


def _meaning(rule: MetricRule) -> str:
    check = rule.check
    parts = [
        f"at least {check.lowest:g}" if check.lowest is not None else "",
        f"at most {check.highest:g}" if check.highest is not None else "",
        f"worse than the champion by at most {check.worse_than_champion_by_at_most.text}"
        if check.worse_than_champion_by_at_most is not None
        else "",
    ]
    return f"{rule.metric} is {', and '.join(part for part in parts if part)}."
