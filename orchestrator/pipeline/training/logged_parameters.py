"""The training's parameters in its MLflow run: `mlflow run --run-id` does not log them, so we do, as a courtesy."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from orchestrator.errors import MlflowError
from orchestrator.resources.mlflow import Mlflow
from orchestrator.resources.mlflow.errors import CUT_OFF, longest_allowed

_log = logging.getLogger(__name__)

_USUAL_LIMITS = (6000, 500, 250)
"""Of MLflow's versions, for a server that does not say how long a value may be."""


def log_parameters(mlflow: Mlflow, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log parameters of a trained run; one that the server does not take is cut or left out, with a warning.

    Raises:
        MlflowUnavailable: the server is away.
        MlflowRefused: the login is no good any more.
    """
    try:
        mlflow.log_params(run_id, parameters)
    except CUT_OFF:
        raise
    except MlflowError:
        # One bad parameter makes MLflow refuse them all, and it says which in words only.
        for name, value in parameters.items():
            _log_one(mlflow, run_id, name, value)


def _log_one(mlflow: Mlflow, run_id: str, name: str, value: str) -> None:
    size = len(value)
    while True:
        try:
            mlflow.log_params(run_id, {name: value[:size]})
        except CUT_OFF:
            raise
        except MlflowError as error:
            limits = (longest_allowed(error) or 0, *_USUAL_LIMITS)
            shorter = next((limit for limit in limits if 0 < limit < size), 0)
            if not shorter:
                _log.warning(f"Not logged parameter {name:.100} of MLflow run {run_id}: {error}")
                return
            size = shorter
        else:
            if size < len(value):
                _log.warning(
                    f"Logged parameter {name:.100} of MLflow run {run_id} without its end: MLflow there takes {size} "
                    f"of its {len(value)} characters"
                )
            return
