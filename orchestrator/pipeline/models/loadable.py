"""Whether a run has logged a model that can be loaded, as far as its files say; no model is ever unpickled here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from orchestrator.errors import MlflowNotFound
from orchestrator.resources.mlflow import LoggedModel, ModelRegistry, Run

DESCRIPTION = "MLmodel"
"""What describes a model: https://mlflow.org/docs/latest/ml/model/#mlmodel-file"""


class _LoaderWithoutMerges(yaml.SafeLoader):
    """Takes no merge key, of which a few lines could be made gigabytes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge nothing."""


_PATHS = ("model_path", "data", "pickled_model", "model_data", "code")
"""Fields of a flavor that name a file or a folder of the model."""


@dataclass(frozen=True)
class Loadable:
    """What the files of a run's model say.

    Attributes:
        fault: why it cannot be loaded, in one sentence; empty: nothing speaks against it.
        flavors: what it can be loaded with.
        has_signature: whether it says what it takes and gives.
    """

    fault: str = ""
    model: LoggedModel | None = None
    flavors: tuple[str, ...] = ()
    has_signature: bool = False


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
    return read(registry.file_of(model, DESCRIPTION), files, model)


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
