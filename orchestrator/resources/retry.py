"""How patient we are: `RetryPolicy` as a value, and the one table of how patient we are with whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import tenacity


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, how long and at what intervals a call is repeated. All times in seconds.

    Attributes:
        total_seconds: no try starts later than this after the first, and over HTTP none lasts longer, but for a second;
            0: one try.
        connect_seconds: how long one connection may take.
        answer_seconds: how long one whole answer may take, its body included.
        first_pause_seconds: pause after the first failed try; it doubles each time, with some jitter.
        longest_pause_seconds: the longest pause, also when a `Retry-After` asks for more.
        max_attempts: the most tries; None: as many as fit into `total_seconds`.
        jitter: whether the pauses are random, because many callers may have failed at the same moment.
    """

    total_seconds: float
    connect_seconds: float
    answer_seconds: float
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 10
    max_attempts: int | None = None
    jitter: bool = True

    def with_total(self, seconds: float) -> Self:
        """The same, but giving up after another time."""
        return replace(self, total_seconds=seconds)

    def retrying(
        self, *, retry: tenacity.retry_base, stop: tenacity.stop.stop_base | None = None, **options: Any
    ) -> tenacity.Retrying:
        """A tenacity loop that keeps this policy and raises the last error.

        Args:
            retry: which outcomes are worth another try.
            stop: another reason to give up.
            options: what else `tenacity.Retrying` takes; `wait` replaces the pauses.
        """
        stops: tenacity.stop.stop_base = tenacity.stop_before_delay(self.total_seconds)
        if self.max_attempts is not None:
            stops |= tenacity.stop_after_attempt(self.max_attempts)
        if stop is not None:
            stops |= stop
        return tenacity.Retrying(**{"retry": retry, "stop": stops, "wait": self.pauses, "reraise": True, **options})

    def polling(self, *, retry: tenacity.retry_base) -> tenacity.Retrying:
        """A tenacity loop that asks until the answer changes, and once more when the time is over.

        Its pauses have no jitter. When the time is over, it raises `tenacity.RetryError`, which holds the last answer.

        Args:
            retry: which answers are worth another question.
        """
        even = replace(self, jitter=False)
        return tenacity.Retrying(retry=retry, stop=tenacity.stop_after_delay(self.total_seconds), wait=even.pauses)

    def pause(self, failures: int) -> float:
        """The pause after so many failed tries."""
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = failures
        return self.pauses(state)

    @property
    def pauses(self) -> tenacity.wait.wait_base:
        """The pauses between two tries."""
        if self.jitter:
            return tenacity.wait_random_exponential(multiplier=self.first_pause_seconds, max=self.longest_pause_seconds)
        return tenacity.wait_exponential(multiplier=self.first_pause_seconds, max=self.longest_pause_seconds)


@dataclass(frozen=True, kw_only=True)
class Ec2Policy(RetryPolicy):
    """How patient we are with EC2; the pauses are also those between two looks at an instance that is not ready.

    Attributes:
        appearance_seconds: how long a new instance may be unknown to some of AWS's servers
            (https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
        absence_seconds: for how long AWS must not know an instance, asked again and again, until we believe that it is
            gone. One that ended is still named for an hour, so that this delays no notice of a loss.
    """

    appearance_seconds: float = 30
    absence_seconds: float = 15


@dataclass(frozen=True, kw_only=True)
class SshPolicy(RetryPolicy):
    """How patient we are when we connect over SSH; `connect_seconds` is one attempt, from TCP to login.

    Attributes:
        last_attempt_seconds: the last attempt gets so much, even beyond `total_seconds`.
        login_seconds: how long a refused login is tried again; cloud-init may write authorized_keys after sshd answers.
        refused_pause_seconds: the first pause after a refused login; OpenSSH makes who comes again too soon wait
            (PerSourcePenalties: 5 s after a failed login), and fail2ban counts.
        longest_login_seconds: a login that is slow gets twice what the slowest has taken so far, and at most this.
    """

    last_attempt_seconds: float
    login_seconds: float
    refused_pause_seconds: float = 5
    longest_login_seconds: float = 60


@dataclass(frozen=True, kw_only=True)
class CapacityPolicy(RetryPolicy):
    """How patient we are with an AWS that has no instance for us; each try is a round over all launch options.

    Attributes:
        look_seconds: between two looks at whether an instance of ours has ended, which makes room in a quota.
    """

    look_seconds: float


# ---- the table: how patient we are with whom
#
# An instance that is gone is noticed within 30 s in every phase: a test adds these numbers up.

EC2 = Ec2Policy(total_seconds=150, connect_seconds=5, answer_seconds=30)
"""Calls that a training needs: an outage of two minutes costs no training."""

EC2_ONE_TRY = Ec2Policy(
    total_seconds=0, connect_seconds=2.5, answer_seconds=5, appearance_seconds=0, absence_seconds=10
)
"""Questions whose answer is of use at once or not at all, such as whether an instance that does not answer is gone."""

CAPACITY = CapacityPolicy(
    total_seconds=3600,
    connect_seconds=EC2.connect_seconds,
    answer_seconds=EC2.answer_seconds,
    first_pause_seconds=5,
    longest_pause_seconds=60,
    look_seconds=10,
)
"""No capacity, or a quota that is used up. `total_seconds` is CAPACITY_PATIENCE_MINUTES."""

EC2_PRICES = RetryPolicy(total_seconds=0, connect_seconds=3, answer_seconds=5)
"""A price is nice to have."""

IMDS = RetryPolicy(total_seconds=0, connect_seconds=1, answer_seconds=1)
"""AWS's metadata service, which answers at once where there is one."""

PACKAGE_INDEX = RetryPolicy(total_seconds=0, connect_seconds=3, answer_seconds=10)
"""The training asks it, too; what it says here is nice to have."""

SSH = SshPolicy(
    total_seconds=20,
    connect_seconds=15,
    answer_seconds=60,
    first_pause_seconds=0.25,
    longest_pause_seconds=3,
    jitter=False,
    last_attempt_seconds=2,
    login_seconds=20,
)
"""An instance that does not answer for so long may be gone: EC2 is asked before the next try."""

REMOTE_CALLS = RetryPolicy(
    total_seconds=math.inf,
    connect_seconds=16,
    answer_seconds=20,
    first_pause_seconds=0.25,
    longest_pause_seconds=0.5,
    max_attempts=3,
    jitter=False,
)
"""Short commands to the supervisor, such as `start`. EC2 is asked between two tries; MAX_TRAINING_MINUTES ends all."""

REMOTE_STOP = RetryPolicy(total_seconds=4, connect_seconds=4, answer_seconds=4, max_attempts=1)
"""A training that was cancelled is stopped before its instance is terminated, where that costs no time to speak of."""

REMOTE_FOLLOWING = RetryPolicy(
    total_seconds=120,
    connect_seconds=8,
    answer_seconds=20,
    first_pause_seconds=0.25,
    longest_pause_seconds=4,
    jitter=False,
)
"""The output of a training, with a sign of life every 2 s. EC2 is asked after each vain try to reconnect, for ever.

`total_seconds` is for a refused login only: a machine that shuts down (spot) refuses, too, before it is gone.
"""

JENKINS = RetryPolicy(total_seconds=30, connect_seconds=4, answer_seconds=12, longest_pause_seconds=5, max_attempts=4)
"""A sensor tick. `answer_seconds` is JENKINS_TIMEOUT_SECONDS."""

JENKINS_TICK_SECONDS = 50.0
"""All questions of a sensor tick together, because Dagster ends one after 60 s; it begins none that may not fit."""

JENKINS_FOR_A_RUN = RetryPolicy(total_seconds=90, connect_seconds=4, answer_seconds=12, longest_pause_seconds=5)
"""A run whose build was never recorded: without Jenkins it can only fail. `answer_seconds` likewise."""

MLFLOW = RetryPolicy(
    total_seconds=75, connect_seconds=5, answer_seconds=10, first_pause_seconds=0.25, longest_pause_seconds=5
)
"""A call whose loss would cost the training. Those that may wait longer say so (MLFLOW_PATIENCE_MINUTES)."""

MLFLOW_CLOSING = MLFLOW.with_total(10)
"""A run that ends. Cancelled runs must end quickly; whatever is still open after this is left to the janitor."""

MLFLOW_ARTIFACT = RetryPolicy(
    total_seconds=120, connect_seconds=5, answer_seconds=120, first_pause_seconds=1, longest_pause_seconds=10
)
"""A file of up to MAX_LOG_MB, which the server writes on before it answers; the instance waits for it."""

MLFLOW_MODEL = RetryPolicy(
    total_seconds=300, connect_seconds=5, answer_seconds=7200, first_pause_seconds=1, longest_pause_seconds=20
)
"""One file of a model, of any size; a pause in it is bounded by itself. Nobody waits but the deployment."""

SAGEMAKER_UPDATE = RetryPolicy(
    total_seconds=3600, connect_seconds=10, answer_seconds=60, first_pause_seconds=5, longest_pause_seconds=20
)
"""SageMaker starts instances and loads the model on them; it gives up by itself, mostly within half an hour."""

JANITOR_EC2 = Ec2Policy(total_seconds=10, connect_seconds=5, answer_seconds=10, absence_seconds=0)
"""The janitor: its next tick is a minute away, and Dagster ends one after 60 s."""

JANITOR_MLFLOW = MLFLOW.with_total(10)
"""Likewise."""

POSTGRES = RetryPolicy(
    total_seconds=180, connect_seconds=10, answer_seconds=30, first_pause_seconds=0.2, longest_pause_seconds=3
)
"""Dagster's own tables: runs, events and ticks wait for as long as a managed database takes to fail over."""

POSTGRES_FOR_THE_UI = POSTGRES.with_total(3)
"""Likewise, for a page that somebody waits for."""
