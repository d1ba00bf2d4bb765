"""The asset `P/trained_model`: resolve the build, provision, train, terminate, record."""

# No `from __future__ import annotations` here: Dagster reads the annotations of ops as objects.
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import dagster as dg

from orchestrator import names
from orchestrator.errors import MlflowError, OrchestratorError
from orchestrator.names import INSTANCE_POOL, Step
from orchestrator.pipeline.builds import builds_partitions, find_build
from orchestrator.pipeline.builds.breaker import early_failures_noted
from orchestrator.pipeline.models.checks import Judgement, check_specs, failure, judge
from orchestrator.pipeline.models.declared import ModelRules
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.config import TrainingConfig, launchpad_schema
from orchestrator.pipeline.training.executor import require_one_process
from orchestrator.pipeline.training.finished import FinishedTraining
from orchestrator.pipeline.training.metadata import logged_something, training_metadata
from orchestrator.pipeline.training.on_instance import young_seconds
from orchestrator.pipeline.training.plan import make_plan
from orchestrator.pipeline.training.run_history import RunHistory
from orchestrator.pipeline.training.run_scope import TrainingAttempts
from orchestrator.resources.ec2 import Ec2Resource, Instance
from orchestrator.resources.jenkins.client import JenkinsResource
from orchestrator.resources.mlflow.client import MlflowResource
from orchestrator.resources.ssh.connection import Ssh, SshResource
from orchestrator.settings.source import PipelineSettings, SettingsSource

RESULT = "result"
"""Dagster's name of a graph asset's output."""


@contextmanager
def failures_in_plain_words() -> Iterator[None]:
    """Let Dagster show our errors as one description instead of a stack of wrapped tracebacks."""
    try:
        yield
    except OrchestratorError as error:
        raise dg.Failure(
            description=str(error), metadata={"kind": type(error).__name__}, allow_retries=False
        ) from error


def _write_to_run_log(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def trained_model(
    name: str, settings: SettingsSource, *, group: str | None = None, rules: ModelRules | None = None
) -> dg.AssetsDefinition:
    """Make the asset `<name>/trained_model`.

    Args:
        name: the pipeline.
        settings: its settings; read when a run needs them.
        group: Dagster's asset group; default: the pipeline's name.
        rules: what its models have to be.
    """
    asked = rules or ModelRules()
    key = dg.AssetKey([name, names.TRAINED_MODEL])

    def attempt_of(context: dg.OpExecutionContext, config: TrainingConfig) -> Attempt:
        resources = context.resources
        attempts: TrainingAttempts = getattr(resources, names.ResourceKey.ATTEMPTS)
        jenkins: JenkinsResource = getattr(resources, names.ResourceKey.JENKINS)
        ec2: Ec2Resource = getattr(resources, names.ResourceKey.EC2)
        ssh: SshResource = getattr(resources, names.ResourceKey.SSH)
        mlflow: MlflowResource = getattr(resources, names.ResourceKey.MLFLOW)

        def make() -> Attempt:
            read = PipelineSettings.read(settings)

            def connect(instance: Instance) -> Ssh:
                return ssh.connect(
                    read.ssh,
                    address=instance.address or "",
                    host_key=instance.host_key,
                    young_seconds=young_seconds(instance),
                )

            partition = context.partition_key
            with jenkins.connect(read.jenkins, project=read.project.uri) as server:
                build = find_build(server, context.instance, name, partition, read.jenkins)
            plan = make_plan(
                pipeline=name,
                partition=partition,
                build=build,
                settings=read,
                config=config,
            )
            return Attempt(
                plan=plan,
                settings=read,
                ec2=ec2.connect(read.machine),
                mlflow=mlflow.connect(read.mlflow),
                connect=connect,
                run=RunHistory(context),
                write=_write_to_run_log,
                loads_model=asked.any,
            )

        return attempts.of(name, make)

    needed = {
        names.ResourceKey.ATTEMPTS,
        names.ResourceKey.JENKINS,
        names.ResourceKey.EC2,
        names.ResourceKey.SSH,
        names.ResourceKey.MLFLOW,
    }

    def step(
        step_name: str,
        meaning: str,
        work: Callable[[dg.OpExecutionContext, Attempt], None],
        *,
        pool: str | None = None,
    ) -> dg.OpDefinition:
        def noted(context: dg.OpExecutionContext) -> AbstractContextManager[None]:
            if step_name not in (Step.RESOLVE, Step.PROVISION):
                return nullcontext()
            return early_failures_noted(context.instance, context.run_id, name, settings)

        @dg.op(
            name=f"{name}__{step_name}",
            description=meaning,
            ins={"after": dg.In(dg.Nothing)},
            out=dg.Out(dg.Nothing),
            required_resource_keys=needed,
            pool=pool,
        )
        def run_step(context: dg.OpExecutionContext, config: TrainingConfig) -> None:
            with failures_in_plain_words(), noted(context):
                require_one_process(context, pipeline=name)
                work(context, attempt_of(context, config))

        return run_step

    resolve = step(
        Step.RESOLVE, "Ask Jenkins what the build tested; check all settings before money is spent.", _resolve
    )
    provision = step(
        Step.PROVISION,
        "Find or launch this build's EC2 instance, and wait for it.",
        _provision,
        pool=INSTANCE_POOL,
    )
    train = step(Step.TRAIN, "Run `mlflow run` on the instance and follow it to its end.", _train, pool=INSTANCE_POOL)
    terminate = step(Step.TERMINATE, "Give the instance back.", _terminate)

    specs = [
        dg.AssetCheckSpec(
            names.LOGGED_SOMETHING,
            asset=key,
            description="The model's MLflow run has a metric or a model; a training that leaves neither may be a "
            "mistake.",
        ),
        *check_specs(asked, key),
    ]

    @dg.op(
        name=f"{name}__{Step.RECORD}",
        description="Record what MLflow holds on the asset.",
        ins={"after": dg.In(dg.Nothing)},
        # A metric may have any name, an output may not.
        out={RESULT: dg.Out(dg.Nothing), **{f"check_{spec.name}": dg.Out(dg.Nothing) for spec in specs}},
        required_resource_keys=needed,
    )
    def record(
        context: dg.OpExecutionContext, config: TrainingConfig
    ) -> Iterator[dg.Output[None] | dg.AssetCheckResult]:
        with failures_in_plain_words():
            require_one_process(context, pipeline=name)
            finished, judgements = _record(context, attempt_of(context, config), asked)
        yield dg.Output(None, RESULT)
        yield logged_something(finished, key)
        yield from (judgement.result(key) for judgement in judgements)
        if fault := failure(judgements, partition=context.partition_key):
            raise dg.Failure(description=fault, metadata={"kind": "ChecksFailed"}, allow_retries=False)

    @dg.graph_asset(
        name=names.TRAINED_MODEL,
        key_prefix=[name],
        group_name=group or name,
        partitions_def=builds_partitions(name),
        ins={"build": dg.AssetIn(key=[name, names.JENKINS_BUILD], dagster_type=dg.Nothing)},
        # Every step gets it, because a re-execution may begin at any step.
        config=dg.ConfigMapping(
            config_fn=lambda given: {step_name: {"config": given} for step_name in Step.ALL},
            config_schema=launchpad_schema(),
        ),
        description=f"The model that MLflow holds for each green Jenkins build of {name}.",
        kinds={"mlflow", "ec2"},
        check_specs=specs,
    )
    def asset(build: None) -> Mapping[str, object]:
        resolved = resolve.alias(Step.RESOLVE)(build)
        ready = provision.alias(Step.PROVISION)(resolved)
        trained = train.alias(Step.TRAIN)(ready)
        terminated = terminate.alias(Step.TERMINATE)(trained)
        recorded, *checked = record.alias(Step.RECORD)(terminated)
        outputs = zip(specs, checked, strict=True)
        return {RESULT: recorded, **{spec.get_python_identifier(): output for spec, output in outputs}}

    return asset


def _resolve(context: dg.OpExecutionContext, attempt: Attempt) -> None:
    plan = attempt.check()
    context.add_output_metadata(
        {
            "Jenkins build": dg.MetadataValue.url(plan.build.url),
            "project": plan.project_uri,
            "version": plan.version,
            "entry point": plan.entry_point,
            "parameters": dg.MetadataValue.json(dict(plan.parameters)),
            "at most, minutes": plan.max_minutes,
        }
    )


def _provision(context: dg.OpExecutionContext, attempt: Attempt) -> None:
    instance = attempt.provision()
    if instance is None:
        return
    context.add_output_metadata(
        {
            "instance": instance.id,
            "type": instance.type,
            "market": instance.market,
            "address": instance.address or "",
        }
    )


def _train(context: dg.OpExecutionContext, attempt: Attempt) -> None:
    context.add_output_metadata({"MLflow run": attempt.train()})


def _terminate(context: dg.OpExecutionContext, attempt: Attempt) -> None:
    usage = attempt.terminate()
    if usage is not None:
        context.add_output_metadata({"instance": usage.instance_id, "minutes": usage.minutes})


def _record(
    context: dg.OpExecutionContext, attempt: Attempt, rules: ModelRules
) -> tuple[FinishedTraining, list[Judgement]]:
    finished = attempt.finished()
    try:
        # Before the model is recorded: whoever sees that it is, sees what the checks say of it.
        judgements = judge(attempt.patient_mlflow, finished.run, rules)
    except MlflowError as error:
        raise type(error)(
            f"build {attempt.plan.partition} is trained, but what its checks say could not be kept on MLflow run "
            f"{finished.run.id}: {error}. When that is put right, re-execute this run from failure: it records without "
            "training again"
        ) from error
    context.add_output_metadata(training_metadata(finished, attempt.plan.build), output_name=RESULT)
    # The run is the version of the model: a new training is new data, a re-recorded one is not.
    context.set_data_version(context.assets_def.key, dg.DataVersion(finished.run.id))
    return finished, judgements
