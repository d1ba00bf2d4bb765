"""The exception tree: what happened, to what, and what to do next.

OrchestratorError
├── SettingsError            a setting is missing or wrong; nothing was started
├── JenkinsError
│   ├── JenkinsUnavailable   no connection, timeout, 408, 429, 5xx or a web page, after retries
│   ├── JenkinsRefused       401, 403, a login page, or a redirect to one
│   ├── JenkinsNotFound      404: no such job or build (any more)
│   └── JenkinsBadAnswer     broken JSON, JSON of another shape, or another address
│       └── JenkinsTooLarge  too large, or nested too deep, to be read
├── Ec2Error
│   ├── LaunchRefused        AWS does not start this instance, whatever the number of tries
│   ├── CapacityUnavailable  not now, not of this type, or not here
│   │   ├── QuotaUsedUp      the account's quota is used up, until instances end
│   │   └── NotOffered       this option never has an instance; another one may
│   └── InstanceLost         the instance is gone, or went away under us
├── SshError
│   ├── SshUnreachable       no connection before the deadline
│   ├── SshRefused           the login was refused, or the key cannot be used
│   └── HostKeyMismatch      the host is not the one that we launched
├── MlflowError
│   ├── MlflowUnavailable    no connection, timeout, 408, 429, 5xx or no JSON, after retries
│   ├── MlflowRefused        401, 403, a login page, or a redirect to one
│   ├── MlflowRejected       400 and its like: MLflow does not accept what was asked
│   ├── MlflowNotFound       no such experiment or run
│   └── MlflowTooLarge       an answer that is too large, or nested too deep, to be read
├── ModelUnusable            no version of the registered model can be taken as it was asked for
├── BuildUnusable            this build cannot be trained (no commit, not successful, gone)
├── BuildBusy                another attempt is training this build at this moment
├── BudgetExceeded           MAX_USD_PER_RUN, _DAY or _MONTH leaves no room for this launch
├── LaunchesPaused           several builds in a row failed alike before their training began
├── TrainingError
│   ├── TrainingFailed       the training process exited non-zero, or was killed by a signal
│   ├── TrainingTimedOut     the deadline passed
│   └── TrainingLost         the process vanished without an exit status
├── DeploymentError          a model was not put into use; what was in use before still is
│   ├── DeploymentFailed     because of the model: it does not start, or does not predict
│   ├── TargetHeld           another pipeline's model is in use there, or something that is not ours
│   └── TargetUnavailable    the target does not answer, or another deployment is under way there
├── DagsterDown              Dagster's webserver or daemon did not start, ended, or gave no usable answer
└── SandboxError             a part of the local sandbox did not start or died
"""

from __future__ import annotations

from orchestrator.printable import printable


class OrchestratorError(Exception):
    """Root of everything this project raises on purpose.

    The message is one plain sentence that a stranger understands: what happened, to what, and
    what to do next. It never holds a secret, nor what would speak to a terminal: it quotes what others said.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in arguments))


class SettingsError(OrchestratorError):
    """A setting is missing or wrong; nothing was started."""


class JenkinsError(OrchestratorError):
    """Jenkins did not give what was asked for."""


class JenkinsUnavailable(JenkinsError):
    """No connection, a timeout, 408, 429, 5xx or a web page, after retries."""


class JenkinsRefused(JenkinsError):
    """401, 403, a login page, or a redirect to one."""


class JenkinsNotFound(JenkinsError):
    """404: no such job or build, or not any more."""


class JenkinsBadAnswer(JenkinsError):
    """Broken JSON, JSON of another shape, or another address."""


class JenkinsTooLarge(JenkinsBadAnswer):
    """Too large, or nested too deep, to be read."""


class Ec2Error(OrchestratorError):
    """EC2 did not do what was asked for."""


class LaunchRefused(Ec2Error):
    """AWS does not start this instance, however often it is asked."""


class CapacityUnavailable(Ec2Error):
    """Not now, not of this type, or not in this zone: another try or place may succeed."""


class QuotaUsedUp(CapacityUnavailable):
    """The account's quota is used up: instances that end make room."""


class NotOffered(CapacityUnavailable):
    """Not of this type in this place, or with this account, however long we wait; another option may do."""


class InstanceLost(Ec2Error):
    """The instance is gone, or went away under us."""


class SshError(OrchestratorError):
    """The instance could not be used over SSH."""


class SshUnreachable(SshError):
    """No connection before the deadline, or the connection broke."""


class SshRefused(SshError):
    """The login was refused, or the private key cannot be used."""


class HostKeyMismatch(SshError):
    """The host that answers is not the one that we launched."""


class MlflowError(OrchestratorError):
    """MLflow did not give what was asked for."""


class MlflowUnavailable(MlflowError):
    """No connection, a timeout, 408, 429, 5xx or no JSON, after retries."""


class MlflowRefused(MlflowError):
    """401, 403, a login page, or a redirect to one."""


class MlflowRejected(MlflowError):
    """400 and its like: MLflow does not accept what was asked."""


class MlflowNotFound(MlflowError):
    """No such experiment or run."""


class MlflowTooLarge(MlflowError):
    """An answer that is too large, or nested too deep, to be read."""


class ModelUnusable(OrchestratorError):
    """No version of the registered model can be taken as it was asked for."""


class BuildUnusable(OrchestratorError):
    """The build cannot be trained: no commit, not successful, or gone without a record."""


class BuildBusy(OrchestratorError):
    """Another attempt is training this build at this moment."""


class LaunchesPaused(OrchestratorError):
    """Several builds in a row failed alike before their training began; the next ones wait."""


class BudgetExceeded(OrchestratorError):
    """A ceiling in USD leaves no room for this launch, or what it costs is not known."""


class TrainingError(OrchestratorError):
    """The training did not end well.

    Attributes:
        out_of_memory: because the kernel killed it, or a process of it, for lack of memory.
    """

    out_of_memory = False


class TrainingFailed(TrainingError):
    """The training process exited non-zero, or was killed by a signal."""


class TrainingTimedOut(TrainingError):
    """The deadline passed before the training ended."""


class TrainingLost(TrainingError):
    """The training process vanished without an exit status."""


class DeploymentError(OrchestratorError):
    """A model was not put into use; what was in use before still is."""


class DeploymentFailed(DeploymentError):
    """Because of the model: it does not start, or does not predict. Another try ends alike."""


class TargetHeld(DeploymentError):
    """Another pipeline's model is in use there, or something that is not ours."""


class TargetUnavailable(DeploymentError):
    """The target does not answer, or another deployment is under way there: another try may succeed."""


class DagsterDown(OrchestratorError):
    """Dagster's webserver or daemon did not start, ended, or gave no usable answer."""


class SandboxError(OrchestratorError):
    """A part of the local sandbox did not start, or died."""
