"""TrainingPipeline: the Dagster component that turns one defs.yaml into a pipeline."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator

from orchestrator import names
from orchestrator.errors import SettingsError
from orchestrator.pipeline import watched
from orchestrator.pipeline.builds import jenkins_build_spec, jenkins_sensor
from orchestrator.pipeline.models.champion_asset import champion_model
from orchestrator.pipeline.models.champion_sensor import champion_sensor
from orchestrator.pipeline.models.declared import ChampionBlock, ChampionRule, MetricCheck, ModelRules, model_rules
from orchestrator.pipeline.models.deployment import DeploymentBlock, DeploymentRule
from orchestrator.pipeline.models.deployment_sensor import deployment_definitions
from orchestrator.pipeline.training.asset import trained_model
from orchestrator.resources.targets import Target
from orchestrator.settings.attributes import SettingNames, SettingsBlock, VariablesBlock, text_of
from orchestrator.settings.source import SettingsSource

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"

SCAFFOLD = """\
# One pipeline: every green build of one Jenkins job becomes a trained model. All settings come from the environment or
# .env (.env.example of the orchestrator lists them); write here what differs for this pipeline. It is checked by
# `python -m orchestrator.pipeline.check_defs` and `dg check yaml`.
type: {type}
attributes:
  # Prefix of the assets, the job and the sensor; without this line it is the folder's name.
  name: {name}
  #settings:
    #JENKINS_JOB_NAME: team/{name}
    #INSTANCE_TYPE: [g5.xlarge, g4dn.xlarge]
    #MLPROJECT_PARAMETERS: {{epochs: 20}}
  # Which variable to read instead, for this pipeline; for secrets too, which may not stand in a file.
  #settings_from_env:
    #JENKINS_TOKEN: {variable}_JENKINS_TOKEN
  # What a model has to be, by metric; a run whose model is not is red. The best of those that pass is the champion.
  #checks:
    #accuracy: {{min: 0.9, worse_than_champion_by_at_most: 5%}}
  #champion: {{metric: accuracy, goal: maximize, model: {name}}}
  # Where the champion is put into use: when there is another one (automatic), or when a person has it so (approval).
  #deployment: {{when: automatic, target: {{directory: /srv/models/{name}}}}}
"""


def _checked_name(name: str) -> str:
    if not re.match(NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} cannot be a pipeline's name, which has letters, digits and underscores only and begins with a "
            f"letter; write for example `name: {_near_name(name)}`"
        )
    return name


def _near_name(name: str) -> str:
    """A name that can be one, as close to this one as possible."""
    near = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return near if re.match(NAME_PATTERN, near) else f"pipeline_{near}".rstrip("_")


Name = Annotated[str, AfterValidator(_checked_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]


class PipelineAttributes(BaseModel):
    """What stands under `attributes` in a defs.yaml.

    A plain model, because `dg.Resolvable` turns each field into `T | str`, which hides a misspelt setting and a value
    that cannot be from `dg check yaml`.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Name | None = Field(
        default=None,
        description="prefix of this pipeline's assets, job, sensor and partitions; default: the folder's name",
    )
    settings: SettingsBlock = Field(
        default_factory=SettingsBlock,
        description="settings that differ from the environment, by the names of .env.example; no secrets",
    )
    settings_from_env: VariablesBlock = Field(
        default_factory=VariablesBlock,
        description="setting: name of the environment variable to read it from, for this pipeline; for secrets too",
    )
    checks: dict[str, MetricCheck] = Field(
        default_factory=dict, description="metric: what it has to be; a model that is not is recorded, and its run red"
    )
    champion: ChampionBlock | None = Field(
        default=None, description="how the best model is found and where it is registered; default: none is"
    )
    deployment: DeploymentBlock | None = Field(
        default=None, description="how the champion gets into use, and where; default: it does not"
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        try:
            model_rules(self.name or "", self.checks, self.champion)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return self


class PipelineScaffolder(dg.Scaffolder):
    """Writes a commented defs.yaml, or appends one more pipeline to it."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write it.

        Raises:
            SettingsError: a Python file is asked for.
        """
        if request.scaffold_format != "yaml":
            raise SettingsError("a pipeline is made of a defs.yaml; leave `--format python` out")
        file = request.target_path if request.append else request.target_path / "defs.yaml"
        folder = file.parent if request.append else request.target_path
        name = _near_name(folder.name)
        text = SCAFFOLD.format(type=request.type_name, name=name, variable=name.upper())
        file.write_text(f"{file.read_text()}---\n{text}" if request.append else text)


@dg.scaffold_with(PipelineScaffolder)
class TrainingPipeline(dg.Component, dg.Model):
    """Every green build of one Jenkins job becomes a trained model."""

    name: Name = Field(description="prefix of this pipeline's assets, job, sensor and partitions")
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that differ from the environment, by the names of .env.example; no secrets",
    )
    settings_from_env: dict[str, str] = Field(
        default_factory=dict,
        description="setting: name of the environment variable to read it from, for this pipeline; for secrets too",
    )
    checks: dict[str, MetricCheck] = Field(
        default_factory=dict, description="metric: what it has to be; a model that is not is recorded, and its run red"
    )
    champion: ChampionBlock | None = Field(
        default=None, description="how the best model is found and where it is registered; default: none is"
    )
    deployment: DeploymentBlock | None = Field(
        default=None, description="how the champion gets into use, and where; default: it does not"
    )
    _context: dg.ComponentLoadContext | None = PrivateAttr(default=None)

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model of `attributes`."""
        return PipelineAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Make the pipeline that a defs.yaml describes; its name is the folder's unless it gives one.

        Raises:
            SettingsError: the folder's name cannot be a pipeline's.
        """
        given = attributes if isinstance(attributes, PipelineAttributes) else PipelineAttributes()
        name = given.name or context.path.name
        try:
            _checked_name(name)
        except ValueError as error:
            raise SettingsError(f"the folder's name {error} under `attributes`") from None
        pipeline = cls(
            name=name,
            settings=_filled_in(given.settings.given(), context, SettingsBlock),
            settings_from_env=_filled_in(given.settings_from_env.given(), context, VariablesBlock),
            checks=given.checks,
            champion=given.champion,
            deployment=given.deployment,
        )
        pipeline._context = context
        _loaded.append(weakref.ref(pipeline))
        return pipeline

    def pipeline_settings(self) -> SettingsSource:
        """The environment, and what this defs.yaml says instead."""
        return SettingsSource(
            pipeline=self.name,
            values={name: text_of(value) for name, value in self.settings.items()},
            from_env=self.settings_from_env,
        )

    def model_rules(self) -> ModelRules:
        """What this defs.yaml asks of its models.

        Raises:
            SettingsError: it cannot be known what is meant.
        """
        return model_rules(self.name, self.checks, self.champion)

    def deployment_rule(self) -> DeploymentRule | None:
        """How its models get into use; None: they do not."""
        if self.deployment is None:
            return None
        champion = self.model_rules().champion
        return DeploymentRule(
            pipeline=self.name,
            model=champion.model if champion else self.name,
            settings=self.pipeline_settings(),
            block=self.deployment,
            after_champion=champion is not None,
        )

    def _twin(self) -> Path | None:
        """The folder of another pipeline of the same name in the same project."""
        mine = self._context
        others = (other for loaded in _loaded if (other := loaded()) and other is not self and other.name == self.name)
        for theirs in (other._context for other in others):
            same_project = mine and theirs and theirs.component_tree is mine.component_tree
            if mine and theirs and same_project and theirs.component_loc != mine.component_loc:
                return theirs.path
        return None

    def _rival(self, mine: ChampionRule | None) -> str | None:
        """Another pipeline of the same project that chooses the champion of the same registered model otherwise."""
        others = (other for loaded in _loaded if (other := loaded()) and other.name != self.name)
        for other in others if mine else ():
            if not (self._context and other._context and other._context.component_tree is self._context.component_tree):
                continue
            theirs = other.model_rules().champion
            if (
                mine
                and theirs
                and theirs.model == mine.model
                and (theirs.metric, theirs.goal) != (mine.metric, mine.goal)
            ):
                return other.name
        return None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, the job and the sensor of this pipeline; what all pipelines share is `definitions.shared()`.

        Raises:
            SettingsError: another pipeline has the same name, the file holds a secret, or a check cannot be meant so.
        """
        if twin := self._twin():
            raise SettingsError(doubled(self.name, (context.path, twin)))
        settings = self.pipeline_settings()
        watched.remember(settings)
        rules = self.model_rules()
        if rival := self._rival(rules.champion):
            raise SettingsError(at_odds((self.name, rival)))
        model = trained_model(self.name, settings, rules=rules)
        job = dg.define_asset_job(
            names.training_job(self.name),
            selection=[model],
            description=f"Trains one green Jenkins build of {self.name} on an EC2 instance of its own.",
            executor_def=dg.in_process_executor,
            # A dead worker is tried again; a training that failed is not. dagster.yaml says the same for
            # runs that are not of this job.
            tags={"dagster/retry_strategy": "ALL_STEPS", "dagster/retry_on_asset_or_op_failure": "false"},
        )
        training = dg.Definitions(
            assets=[jenkins_build_spec(self.name), model],
            jobs=[job],
            sensors=[jenkins_sensor(self.name, settings, job)],
        )
        rule = self.deployment_rule()
        target = rule.target if rule else None
        further = [champion_definitions(rules.champion, settings, target=target)] if rules.champion else []
        if rule:
            further.append(deployment_definitions(rule))
        return dg.Definitions.merge(training, *further) if further else training


def champion_definitions(
    rule: ChampionRule, settings: SettingsSource, *, target: Callable[[], Target] | None
) -> dg.Definitions:
    """What a pipeline has in addition that has a champion: the asset, its job and the sensor."""
    champion = champion_model(rule, settings, target=target)
    job = dg.define_asset_job(
        names.champion_job(rule.pipeline),
        selection=[champion],
        description=f"Registers the trained models of {rule.pipeline} and chooses the champion.",
        executor_def=dg.in_process_executor,
        # It takes seconds: it does not wait for the rest of a backfill.
        tags={
            names.DagsterTag.RETRY_STRATEGY: "ALL_STEPS",
            names.DagsterTag.RETRY_ON_OP_FAILURE: "false",
            names.DagsterTag.PRIORITY: "1",
        },
    )
    return dg.Definitions(assets=[champion], jobs=[job], sensors=[champion_sensor(rule.pipeline, job)])


_loaded: list[weakref.ref[TrainingPipeline]] = []
"""All that this process has loaded from YAML and still holds."""


def doubled(name: str, folders: Sequence[Path]) -> str:
    """The sentence for pipelines of one name, each of which could be the owner of the other's machines."""
    files = " and ".join(sorted({str(folder / "defs.yaml") for folder in folders}))
    return f"{len(folders)} pipelines are named {name!r} ({files}); give each a `name` of its own under `attributes`"


def at_odds(pipelines: Sequence[str]) -> str:
    """The sentence for pipelines of one registered model, each of which would undo the other's choice."""
    return (
        f"pipelines {' and '.join(sorted(pipelines))} choose the champion of one registered model by different "
        "metrics or goals, and each would undo what the other does; give each a `model` of its own under `champion`"
    )


def _filled_in(given: Mapping[str, str], context: dg.ComponentLoadContext, block: type[SettingNames]) -> dict[str, str]:
    """With Dagster's templates (`{{ env.JENKINS_JOB }}`) replaced, and then checked as if written so."""
    filled = {name: context.resolution_context.resolve_value(value) for name, value in given.items()}
    return dict(given) if filled == given else block.model_validate(filled).given()
