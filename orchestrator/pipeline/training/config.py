"""What the launchpad can change for one run."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
from pydantic import Field

from orchestrator.settings.groups import LONGEST_MINUTES


class TrainingConfig(dg.Config):
    """What the launchpad can change for one run; everything left out is as the settings say."""

    entry_point: str | None = Field(default=None, description="entry point, instead of MLPROJECT_ENTRY_POINT")
    parameters: dict[str, str] = Field(
        default={}, description="parameters of the entry point, on top of MLPROJECT_PARAMETERS"
    )
    version: str | None = Field(
        default=None, description="Git commit, tag or branch, instead of the build's own commit"
    )
    instance_type: str | None = Field(
        default=None,
        description="EC2 instance type, one of INSTANCE_TYPE or INSTANCE_TYPES_ALLOWED, instead of INSTANCE_TYPE",
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
        description="deadline in minutes, MAX_TRAINING_MINUTES at most, instead of MAX_TRAINING_MINUTES",
    )


def launchpad_schema() -> Mapping[str, dg.Field]:
    """The fields of `TrainingConfig` for the launchpad, where text is nothing but text.

    In the schema that Dagster makes of a `Config`, `{env: NAME}` stands for a variable of the process that runs it: it
    would hand any secret of ours to the training, and to everybody who reads MLflow.
    """
    kinds: Mapping[str, object] = {"parameters": {str: str}, "max_minutes": float}
    return {
        name: dg.Field(
            dg.Noneable(kinds.get(name, str)),
            is_required=False,
            default_value=field.default,
            description=field.description,
        )
        for name, field in TrainingConfig.model_fields.items()
    }
