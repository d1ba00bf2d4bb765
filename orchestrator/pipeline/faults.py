"""What is wrong with a file under defs/, as one sentence with file and line."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import yaml
from pydantic import ValidationError

from orchestrator.errors import SettingsError

TYPE = "orchestrator.pipeline.component.TrainingPipeline"


def fault_of_text(file: Path) -> str | None:
    """Why Dagster cannot even begin with this defs.yaml; None: it can.

    Checked by ourselves, because Dagster's own errors here name neither the file nor a cure.
    """
    try:
        text = file.read_text(encoding="utf-8")
        documents = list(yaml.compose_all(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        return f"{file}:1: cannot be read: {reason}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.problem, error.context)))
        return f"{file}:{mark.line + 1 if mark else 1}: cannot be read as YAML: {what}"
    except yaml.YAMLError as error:  # a character that YAML does not know; has no mark
        return f"{file}:1: cannot be read as YAML: {' '.join(str(error).split())}"
    if not documents:
        return f"{file}:1: is empty; write `type: {TYPE}`"
    for document in documents:
        line = min(document.start_mark.line + 1, len(text.splitlines()))
        if isinstance(document, yaml.ScalarNode) and not document.value:
            return f"{file}:{line}: this document is empty; write `type: {TYPE}`, or remove its `---`"
        if not isinstance(document, yaml.MappingNode):
            return f"{file}:{line}: holds no `type:` and `attributes:`; write `type: {TYPE}`"
    return None


def fault_of(error: BaseException, file: Path) -> str:
    """The sentence for what Dagster (or the file itself, in Python) has raised.

    Args:
        error: as caught; what it was raised from says more than Dagster's own wrapping.
        file: the defs.yaml or Python file that was being loaded.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ValidationError):
            return "\n".join(_of_validation(cause, file))
    for cause in causes:
        if isinstance(cause, SettingsError):
            return f"{file}:{line_of('attributes', file)}: {cause}"
    root = causes[-1]
    if file.suffix == ".py":
        lines = [frame.lineno for frame in traceback.extract_tb(root.__traceback__) if Path(frame.filename) == file]
        line = (root.lineno if isinstance(root, SyntaxError) else lines[-1] if lines else None) or 1
        return f"{file}:{line}: {type(root).__name__}: {root}"
    if fault := _fault_of_type(_value_of("type", file)):
        return f"{file}:{line_of('type', file)}: {fault}"
    return f"{file}:1: {type(root).__name__}: {root}"


def _fault_of_type(name: str) -> str | None:
    """Why this is no type of a component; asked only when Dagster could not load it."""
    module, _, attribute = name.rpartition(".")
    if name.startswith("."):
        return None
    try:
        if module and issubclass(getattr(importlib.import_module(module), attribute), dg.Component):
            return None
        reason = "a component's type is written with its module, such as"
    except Exception as error:  # noqa: BLE001 - whatever importing it raises
        reason = f"{error}; ours is"
    return f"there is no component type {name!r}: {reason} {TYPE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _of_validation(error: ValidationError, file: Path) -> Iterator[str]:
    for fault in error.errors():
        position = fault.get("ctx", {}).get("source_position")
        line = position.start.line if position else line_of("attributes", file)
        path = str(fault["loc"][-1] if fault["loc"] else "").split(" at ")[0].rpartition(".")[2]
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"there is no {path!r} here; .env.example and the component's schema list what there is"
        elif fault["type"] == "missing":
            message = f"{path!r} is missing"
        elif fault["type"] != "value_error":
            message = f"{path} is wrong: {message}"
        yield f"{file}:{line}: {message}"


def line_of(key: str, file: Path) -> int:
    """The line of the first such key; 1 if there is none."""
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    return next((number for number, line in lines if re.match(rf"(.*[\s{{,])?{key}\s*:", line)), 1)


def _value_of(key: str, file: Path) -> str:
    found = re.search(rf"(?m)^{key}\s*:\s*(.*?)\s*(#.*)?$", file.read_text(encoding="utf-8"))
    return found[1].strip("'\"") if found else ""
