"""Decides as IAM does whether a policy allows a request; moto, which the sandbox's AWS is, looks at no condition.

The rules: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = str | tuple[str, ...]
"""One value; or several, of a key that may have them, such as aws:TagKeys."""


@dataclass(frozen=True)
class IamRequest:
    """One action on one resource. A call of an API may need several of them to be allowed."""

    action: str
    resource: str = "*"
    context: Mapping[str, Values] = field(default_factory=dict)


def refused(policy: Mapping[str, Any], requests: Iterable[IamRequest]) -> list[IamRequest]:
    """Those of these requests that the policy does not allow."""
    return [request for request in requests if not allows(policy, request)]


def allows(policy: Mapping[str, Any], request: IamRequest) -> bool:
    """Whether a statement allows the request, and none denies it."""
    effects = {statement["Effect"] for statement in policy["Statement"] if _applies(statement, request)}
    return effects == {"Allow"}


def listed(value: Any) -> list[Any]:
    """IAM takes one value for a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _applies(statement: Mapping[str, Any], request: IamRequest) -> bool:
    return (
        any(_like(request.action.lower(), action.lower()) for action in listed(statement["Action"]))
        and any(_like(request.resource, resource) for resource in listed(statement["Resource"]))
        and all(
            _holds(operator, _values_of(key, request.context), listed(wanted))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _values_of(key: str, context: Mapping[str, Values]) -> Values | None:
    """A key's name has no case, the name of a tag in it neither."""
    return next((value for name, value in context.items() if name.lower() == key.lower()), None)


def _holds(operator: str, given: Values | None, wanted: Sequence[str]) -> bool:
    quantifier, _, plain = operator.rpartition(":")
    test = plain.removesuffix("IfExists")
    if test == "Null":
        return (given is None) == (wanted[0] == "true")
    matches = TESTS[test]
    if given is None:
        # ForAllValues holds of nothing at all; a negation holds of what is not there.
        return quantifier == "ForAllValues" or plain.endswith("IfExists") or "Not" in test
    if isinstance(given, tuple) != bool(quantifier):
        raise ValueError(f"{operator} on {given!r}: a key with several values needs ForAllValues or ForAnyValue")
    each = [any(matches(value, pattern) for pattern in wanted) for value in listed(given)]
    if "Not" in test:
        each = [not matched for matched in each]
    return any(each) if quantifier == "ForAnyValue" else all(each)


def _like(text: str, pattern: str) -> bool:
    return re.fullmatch(_regex(pattern, wildcards=True), text) is not None


def _same(text: str, pattern: str) -> bool:
    return re.fullmatch(_regex(pattern, wildcards=False), text) is not None


def _like_arn(text: str, pattern: str) -> bool:
    """Part by part: a wildcard does not reach over a colon."""
    texts, patterns = text.split(":", 5), pattern.split(":", 5)
    return len(texts) == len(patterns) and all(map(_like, texts, patterns))


@functools.cache
def _regex(pattern: str, *, wildcards: bool) -> str:
    """`${*}`, `${?}` and `${$}` are these characters themselves, in every operator."""
    parts = re.findall(r"\$\{[*?$]\}|.", pattern, re.DOTALL)
    meanings = {"*": ".*", "?": "."} if wildcards else {}
    return "(?s:" + "".join(meanings.get(part) or re.escape(part[2] if len(part) > 1 else part) for part in parts) + ")"


TESTS: Mapping[str, Callable[[str, str], bool]] = {
    "StringEquals": _same,
    "StringNotEquals": _same,
    "StringLike": _like,
    "ArnEquals": _like_arn,
    "ArnLike": _like_arn,
    "Bool": lambda text, pattern: text.lower() == pattern.lower(),
    "NumericLessThanEquals": lambda text, pattern: float(text) <= float(pattern),
}
