"""Whether a run has logged a model that can be loaded; no model is ever unpickled here.

Its files are looked at here. It was loaded on the instance, in the training's own environment, before that was given
back (`remote/hooks/model_check.py`), which left a tag on the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import yaml

from orchestrator.errors import MlflowNotFound
from orchestrator.names import MlflowTag
from orchestrator.resources.mlflow import LoggedModel, ModelRegistry, Run

DESCRIPTION = "MLmodel"
"""What describes a model: https://mlflow.org/docs/latest/ml/model/#mlmodel-file"""


class _LoaderWithoutMerges(yaml.SafeLoader):
    """Takes no merge key, of which a few lines could be made gigabytes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge nothing."""


_PATHS = ("model_path", "data", "pickled_model", "model_data", "code")
"""Fields of a flavor that name a file or a folder of the model."""


class LoadState(StrEnum):
    """How loading a model in its training's environment went."""

    LOADED = "loaded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LoadTrial:
    """What the instance says of loading the model there.

    Attributes:
        predicted: it has answered its own input example.
        reason: of a failure, the last lines of the error; else why nothing is known.
        seconds: how long it took.
        python: the version of the environment's Python.
    """

    state: LoadState = LoadState.UNKNOWN
    predicted: bool = False
    reason: str = "nobody did so where it was trained"
    seconds: float = 0
    python: str = ""

    @classmethod
    def of(cls, run: Run, model: LoggedModel) -> LoadTrial:
        """Read the tag of a run; whoever may log to it may have written it.

        Args:
            run: the run.
            model: the one that the question is about.
        """
        text = run.tags.get(MlflowTag.MODEL_LOADED)
        if text is None:
            return cls()
        try:
            data = json.loads(text)
            state = LoadState(data["state"])
            tried = str(data.get("model", ""))
            trial = cls(
                state=state,
                predicted=data.get("predicted") is True,
                reason=str(data.get("reason", "")),
                seconds=float(data.get("seconds", 0)),
                python=str(data.get("python", ""))[:50],
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return cls(reason=f"the tag {MlflowTag.MODEL_LOADED} of its MLflow run cannot be read")
        if tried and tried != (model.id or model.name):
            return cls(reason=f"{tried[:200]} was the newest model when the training ended")
        return trial


@dataclass(frozen=True)
class Loadable:
    """What the files of a run's model say.

    Attributes:
        fault: why it cannot be loaded, in one sentence; empty: nothing speaks against it.
        flavors: what it can be loaded with.
        has_signature: whether it says what it takes and gives.
        trial: how loading it went.
    """

    fault: str = ""
    model: LoggedModel | None = None
    flavors: tuple[str, ...] = ()
    has_signature: bool = False
    trial: LoadTrial = LoadTrial()


def look(registry: ModelRegistry, run: Run) -> Loadable:
    """Look at the model that was logged to a run.

    Raises:
        MlflowError: the server cannot be asked, or does not hand out what it has.
    """
    try:
        model = registry.model_of(run)
    except MlflowNotFound as error:
        return Loadable(f"the model of MLflow run {run.id} is not there any more: {error}")
    if model is None:
        return Loadable(
            f"MLflow run {run.id} has no model: log one, for example with "
            "`mlflow.sklearn.log_model(model, name='model', input_example=…)`"
        )
    files = registry.files_of(model)
    if DESCRIPTION not in files:
        return Loadable(f"model {model.name} of MLflow run {run.id} has no file {DESCRIPTION}", model)
    found = read(registry.file_of(model, DESCRIPTION), files, model)
    return replace(found, trial=LoadTrial.of(run, model))


def read(content: bytes, files: Sequence[str], model: LoggedModel) -> Loadable:
    """What a model's description says of it.

    Args:
        content: of its file MLmodel; anybody may have written it.
        files: the paths of all of the model's files.
        model: which one it is.
    """
    try:
        data = yaml.load(content, _LoaderWithoutMerges)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Loadable(f"{DESCRIPTION} of model {model.name} cannot be read: {' '.join(str(error).split())}", model)
    flavors = data.get("flavors") if isinstance(data, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        return Loadable(f"{DESCRIPTION} of model {model.name} names no flavor, so nothing can load it", model)
    missing = [path for about in flavors.values() for path in _named(about) if not _is_there(path, files)]
    if missing:
        return Loadable(
            f"model {model.name} has no {', '.join(sorted(set(missing)))}, which its {DESCRIPTION} names", model
        )
    if len(files) < 2:
        return Loadable(f"model {model.name} has no file besides {DESCRIPTION}", model)
    return Loadable("", model, tuple(sorted(map(str, flavors))), isinstance(data.get("signature"), dict))


def _named(about: object) -> list[str]:
    fields: Mapping[object, object] = about if isinstance(about, dict) else {}
    return [path for key in _PATHS if isinstance(path := fields.get(key), str) and path]


def _is_there(path: str, files: Sequence[str]) -> bool:
    path = path.strip("/")
    return path == "." or any(file == path or file.startswith(f"{path}/") for file in files)
