"""The settings that a pipeline's defs.yaml may hold, as a Pydantic model: what `dg check yaml` and editors read.

Made from the groups, so that each setting is declared once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema, create_model
from pydantic import model_validator as validator
from pydantic.fields import FieldInfo

from orchestrator.settings.groups import (
    GROUPS,
    SettingsGroup,
    all_settings,
    env_name,
    fault_of_committed,
    fault_of_name,
    is_secret,
)

Fault = tuple[str, str]
"""Where in the file (a setting's name), and the sentence."""


def text_of(value: object) -> str:
    """A YAML value as the environment would hold it.

    Raises:
        ValueError: YAML makes something of it that no setting is.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(map(text_of, value))
    if value is None:
        raise ValueError("has no value; write one, or take the line out")
    try:
        return json.dumps(value)
    except TypeError:
        raise ValueError(f"is read by YAML as a {type(value).__name__}; put it into quotes") from None


def is_template(value: object) -> bool:
    """Whether Dagster fills it in while the component loads, as in `{{ env.JENKINS_JOB }}`."""
    return isinstance(value, str) and "{{" in value


class SettingNames(BaseModel):
    """A mapping in defs.yaml whose keys are settings."""

    # What is refused may be a secret.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def given(self) -> dict[str, str]:
        """What the file sets, as the environment would hold it."""
        return {name: text_of(value) for name, value in self.model_dump(exclude_unset=True).items()}


def _refuse(faults: list[Fault]) -> None:
    """Raise one error that names each setting, so that its line in the file can be found."""
    if faults:
        errors: list[Any] = [
            {"type": "value_error", "loc": (name,), "input": None, "ctx": {"error": ValueError(sentence)}}
            for name, sentence in faults
        ]
        raise ValidationError.from_exception_data("settings", errors, hide_input=True)


def _fault_of_value(name: str, value: object) -> str | None:
    try:
        text = text_of(value)
    except ValueError as error:
        return f"{name} {error}"
    if fault := fault_of_committed(name, text):
        return fault
    if not text or is_template(value):
        return None
    try:
        _adapter(all_settings()[name]).validate_python(text)
    except ValidationError as error:
        return f"{name}={text!r} is wrong: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
    return None


def _adapter(info: FieldInfo) -> TypeAdapter[Any]:
    annotated: Any = Annotated[info.annotation, info]
    return TypeAdapter(annotated)


def _check_settings(given: object) -> object:
    if isinstance(given, Mapping):
        found = ((str(name), fault_of_name(str(name)) or _fault_of_value(str(name), given[name])) for name in given)
        _refuse([(name, fault) for name, fault in found if fault])
    return given


def _check_variables(given: object) -> object:
    if isinstance(given, Mapping):
        found = ((str(name), fault_of_name(str(name)) or _fault_of_variable(str(name), given[name])) for name in given)
        _refuse([(name, fault) for name, fault in found if fault])
    return given


def _fault_of_variable(name: str, variable: object) -> str | None:
    if isinstance(variable, str) and variable.strip():
        return None
    return f"{name} needs the name of an environment variable, such as CHURN_{name}"


_NUMBER = r"^[0-9.eE+]*$"

_BY_TYPE: Mapping[str, Mapping[str, object]] = {
    "string": {"type": ["string", "number", "boolean"]},
    "integer": {"type": ["integer", "string"], "pattern": _NUMBER},
    "number": {"type": ["number", "string"], "pattern": _NUMBER},
    "boolean": {"enum": [True, False, "true", "false"]},
    "array": {"type": ["string", "array"], "items": {"type": ["string", "number"]}},
    "object": {"type": ["object", "string"]},
}
"""A setting's type in the environment, where all is text → what YAML may hold instead."""


_properties = lru_cache(lambda group: group.model_json_schema()["properties"])


def _schema(group: type[SettingsGroup], field: str) -> dict[str, object]:
    declared = _properties(group)[field]
    given = next((each for each in declared.get("anyOf", []) if each["type"] != "null"), declared)
    bounds = {key: given[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in given}
    kind = {"enum": given["enum"]} if "enum" in given else _BY_TYPE[given["type"]]
    return {**kind, **bounds, "description": declared["description"]}


def _model(
    name: str, meaning: str, fields: Mapping[str, tuple[Any, FieldInfo]], check: Callable[[object], object]
) -> type[SettingNames]:
    return create_model(  # type: ignore[no-any-return, call-overload]
        name,
        __base__=SettingNames,
        __doc__=meaning,
        __validators__={"check": validator(mode="before")(check)},
        **fields,
    )


def _fields(schema_of: Callable[[type[SettingsGroup], str], dict[str, object] | None]) -> dict[str, Any]:
    return {
        env_name(info): (Annotated[Any, WithJsonSchema(schema)], Field(None, description=info.description))
        for group in GROUPS
        if group.per_pipeline
        for field, info in group.model_fields.items()
        if (schema := schema_of(group, field)) is not None
    }


if TYPE_CHECKING:

    class SettingsBlock(SettingNames):
        """Settings that differ from the environment."""

    class VariablesBlock(SettingNames):
        """Settings that are read from another variable of the environment."""

else:
    SettingsBlock = _model(
        "SettingsBlock",
        "Settings that differ from the environment, by the names of .env.example; no secrets.",
        _fields(lambda group, field: None if is_secret(group.model_fields[field]) else _schema(group, field)),
        _check_settings,
    )
    VariablesBlock = _model(
        "VariablesBlock",
        "Setting: name of the environment variable to read it from, for this pipeline; for secrets too.",
        _fields(lambda group, field: {"type": "string", "description": group.model_fields[field].description}),
        _check_variables,
    )
