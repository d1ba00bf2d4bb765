"""Every name that others rely on: users, outside tools, earlier versions of ourselves. Imports nothing.

A string that two files share stands here. Those in `DagsterTag` are Dagster's own; a test compares them with Dagster's.
"""

JENKINS_BUILD = "jenkins_build"
"""The external asset `P/jenkins_build` of a pipeline P, reported by its sensor."""

TRAINED_MODEL = "trained_model"
"""The asset `P/trained_model` of a pipeline P."""

CONFIGURATION = "configuration"
"""The asset `P/configuration` of a pipeline P, whose checks say what is wrong with its settings."""

READABLE = "readable"
"""The check of `P/configuration` that is red while P's defs.yaml cannot be used."""

LOGGED_SOMETHING = "logged_something"
"""The check of `P/trained_model` that warns when the model's MLflow run has neither a metric nor a model."""

LOADABLE_MODEL = "loadable_model"
"""The check of `P/trained_model` that is red when the model's MLflow run has no model that can be loaded."""

CHAMPION_MODEL = "champion_model"
"""The asset `P/champion_model` of a pipeline P that says what its champion is."""

CHAMPION_ALIAS = "champion"
"""The alias of the registered model that points to the version in use."""

DEPLOYED_MODEL = "deployed_model"
"""The asset `P/deployed_model` of a pipeline P: the model in use in its target."""

IN_USE = "champion_in_use"
"""The check of `P/deployed_model` that warns while the target holds another model than the champion."""

JANITOR = "janitor"
"""The sensor that ends what was left behind, and the external asset that tells of it."""

INSTANCE_POOL = "training_instances"
"""Dagster's concurrency pool of the runs that hold an instance; its limit can be changed while they run."""


def builds(pipeline: str) -> str:
    """The partitions of a pipeline, one per build."""
    return f"{pipeline}_builds"


def jenkins_sensor(pipeline: str) -> str:
    """The sensor that turns each green build into a partition and a run."""
    return f"{pipeline}_jenkins_sensor"


def training_job(pipeline: str) -> str:
    """The job that the sensor launches."""
    return f"{pipeline}_training"


def champion_job(pipeline: str) -> str:
    """The job that registers trained models and chooses the champion."""
    return f"{pipeline}_champion"


def champion_sensor(pipeline: str) -> str:
    """The sensor that launches it."""
    return f"{pipeline}_champion_sensor"


def deployment_job(pipeline: str) -> str:
    """The job that puts the champion into use, and the pool that lets one such run at a time through."""
    return f"{pipeline}_deployment"


def deployment_sensor(pipeline: str) -> str:
    """The sensor that compares the champion with what is in use."""
    return f"{pipeline}_deployment_sensor"


SIGNING_KEY = "orchestrator/signing-key"
"""Where Dagster's database holds the key that signs recorded builds."""

GIT_HOST = "orchestrator/git-host/"
"""Where it holds the Git host that a pipeline's builds may be on; a digest of pipeline and job follows."""


class Step:
    """The ops of `P/trained_model`, in order."""

    RESOLVE = "resolve"
    PROVISION = "provision"
    TRAIN = "train"
    TERMINATE = "terminate"
    RECORD = "record"
    ALL = (RESOLVE, PROVISION, TRAIN, TERMINATE, RECORD)


class ResourceKey:
    """Dagster's keys of what all pipelines share. `ssh` and `mlflow` without a prefix are often somebody else's."""

    JENKINS = "orchestrator_jenkins"
    EC2 = "orchestrator_ec2"
    SSH = "orchestrator_ssh"
    MLFLOW = "orchestrator_mlflow"
    ATTEMPTS = "orchestrator_attempts"


OUTPUT_ARTIFACT = "orchestrator/output.log.gz"
"""All of a training's output, among the artifacts of its MLflow run, when there is more of it than its log holds."""

CONTAINER_LABEL = "orchestrator.training"
"""Docker's label of a training's container; its value is the MLflow run's ID. `supervisor.sh` ends it by that."""


class Ec2Tag:
    """Tags of instances and volumes."""

    NAME = "Name"
    DEPLOYMENT = "orchestrator:deployment"
    PIPELINE = "orchestrator:pipeline"
    PARTITION = "orchestrator:partition"
    DAGSTER_RUN = "orchestrator:dagster-run"
    MLFLOW_RUN = "orchestrator:mlflow-run"
    EXPIRES_AT = "orchestrator:expires-at"
    """When the machine powers itself off; ISO 8601, UTC. (Not when the lease ends.)"""
    HOST_KEY = "orchestrator:host-key"
    LEASE_UNTIL = "orchestrator:lease-until"


class MlflowTag:
    """Tags of MLflow runs; those named `mlflow.…` are MLflow's own.

    https://mlflow.org/docs/latest/ml/tracking/tracking-api/#system-tags
    """

    DEPLOYMENT = "orchestrator.deployment"
    PIPELINE = "orchestrator.pipeline"
    PARTITION = "orchestrator.partition"
    PARAMETERS = "orchestrator.parameters"
    BUILD_IMAGE = "orchestrator.build_image"
    """`false`: a docker_env project runs what its image holds, whatever the commit."""
    REASON = "orchestrator.reason"
    ENDED_AS = "orchestrator.ended_as"
    """The status that we ended it with: a process that lived on may have written another one since."""
    TRAINING = "orchestrator.training"
    """On runs that a training made besides the one that we gave it: the ID of that one."""
    DAGSTER_RUN = "dagster_run_id"
    DAGSTER_ROOT_RUN = "dagster_root_run_id"
    JENKINS_JOB = "jenkins.job"
    JENKINS_BUILD = "jenkins.build"
    JENKINS_TIMESTAMP = "jenkins.timestamp"
    JENKINS_URL = "jenkins.url"
    INSTANCE_ID = "ec2.instance_id"
    INSTANCE_TYPE = "ec2.instance_type"
    MARKET = "ec2.market"
    MINUTES = "ec2.minutes"
    USD = "ec2.usd"
    COST_USD = "orchestrator.cost_usd"
    """The same, on failed runs too: what was spent is found by it."""
    RESERVED_USD = "orchestrator.reserved_usd"
    """The worst case of a launch, as long as there is a ceiling; what two launches at once see of each other."""
    CHECKS = "orchestrator.checks"
    """`passed` or `failed`: the verdict of the checks on the model, which the champion needs."""
    CHECKS_REASON = "orchestrator.checks_reason"
    MODEL_LOADED = "orchestrator.model_loaded"
    """JSON: whether the run's newest model could be loaded in the training's environment; `hooks/model_check.py`."""
    EXPERIMENT = "orchestrator.experiment"
    """The name of the experiment that it was trained for: such a run is no champion, unless the next tag says so."""
    MAY_BE_CHAMPION = "orchestrator.may_be_champion"
    SOURCE_TYPE = "mlflow.source.type"
    SOURCE_NAME = "mlflow.source.name"
    SOURCE_COMMIT = "mlflow.source.git.commit"
    SOURCE_REPOSITORY = "mlflow.source.git.repoURL"
    SOURCE_BRANCH = "mlflow.source.git.branch"
    GIT_REPOSITORY = "mlflow.gitRepoURL"
    ENTRY_POINT = "mlflow.project.entryPoint"
    BACKEND = "mlflow.project.backend"
    PARENT_RUN = "mlflow.parentRunId"
    LOGGED_MODELS = "mlflow.log-model.history"
    """Written by MLflow 2; MLflow 3 has the models among the run's outputs."""
    PROJECT_ENV = "mlflow.project.env"
    DOCKER_IMAGE = "mlflow.docker.image.uri"


class VersionTag:
    """Tags of versions of a registered model, besides those of `MlflowTag` that say what it was made from."""

    PROMOTED = "orchestrator.promoted"
    """JSON: who made it the champion, why, when, and after which build; a newer build may beat it."""
    REJECTED = "orchestrator.rejected"
    """JSON: who rolled back from it, why and when; empty: it is not rejected any more."""
    EVALUATION_DATA = "orchestrator.evaluation_data"
    """Names and digests of the data that its metrics come from, as far as the training has said."""
    DEPLOYED_TO = "orchestrator.deployed_to."
    """Beginning of the tags that say where it was put into use; a digest of the target follows. Empty: it is not there
    any more. Such a version is not removed; which one is in use, only the target itself knows."""
    DEPLOYMENT_FAILED = "orchestrator.deployment_failed"
    """JSON: where and why it could not be put into use, and when; it is rejected, too. Empty: it could, since."""


class RunTag:
    """Our own tags of Dagster runs."""

    LEASE_UNTIL = "orchestrator/lease-until"
    TRAINED = "orchestrator/trained"
    RETRIES_ASKED = "orchestrator/retries-asked"
    INSTANCE = "orchestrator/instance"
    """The instance that the run has launched or taken over. An instance that its run does not name is not believed."""
    HOST_KEY = "orchestrator/host-key"
    """The fingerprint of that instance's SSH host key, `SHA256:...`."""
    MLFLOW_RUN = "orchestrator/mlflow-run"
    EXPIRES_AT = "orchestrator/expires-at"
    MAX_MINUTES = "orchestrator/max-minutes"
    """What that instance was launched with: its tags are within reach of others, these are not."""
    LATE = "orchestrator/late"
    """When the janitor ended the run's instance because it had run past its deadline; ISO 8601, UTC."""
    DECIDES = "orchestrator/decides"
    """Up to which recorded model (Dagster's number of the event) a run of the champion's job is to decide."""
    FAILED_EARLY = "orchestrator/failed-early"
    """How the run failed before its training began: kind, fingerprint of the settings, and its own ID."""
    JENKINS_JOB = "jenkins/job"
    JENKINS_BUILD = "jenkins/build"
    JENKINS_COMMIT = "jenkins/commit"
    MODEL_VERSION = "orchestrator/model-version"
    """What the deployment sensor launched a run for."""
    LAUNCHED_BY = "orchestrator/launched-by"
    """Who launched it through `serve`, which sets it whatever the request says; of a run or a backfill."""


class DagsterTag:
    """Dagster's tags of its runs.

    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/storage/tags.py
    """

    PARTITION = "dagster/partition"
    PRIORITY = "dagster/priority"
    RUN_KEY = "dagster/run_key"
    BACKFILL = "dagster/backfill"
    ROOT_RUN = "dagster/root_run_id"
    WILL_RETRY = "dagster/will_retry"
    AUTO_RETRY_RUN = "dagster/auto_retry_run_id"
    FAILURE_REASON = "dagster/failure_reason"
    RETRY_STRATEGY = "dagster/retry_strategy"
    RETRY_ON_OP_FAILURE = "dagster/retry_on_asset_or_op_failure"
    MAX_RETRIES = "dagster/max_retries"
    DATA_VERSION = "dagster/data_version"
    """Of materialisations, where the others are of runs."""
