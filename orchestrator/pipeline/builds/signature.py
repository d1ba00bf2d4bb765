"""Which records of builds are ours: each carries a MAC, because anybody may report an event of an asset.

Dagster's webserver takes events from whoever reaches it. The key lies in Dagster's database, which daemon, code
servers and run workers share on whatever host they are.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import keep_value, kept_value
from orchestrator.errors import SettingsError

KEY_BYTES = 32

_VERSION = 1


@dataclass(frozen=True)
class Signer:
    """Signs and checks the records of one pipeline's builds.

    Attributes:
        pipeline: its name.
        key: shared by all processes of this Dagster.
    """

    pipeline: str
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, instance: dg.DagsterInstance, pipeline: str) -> Self:
        """With this Dagster's key, which is made the first time that anybody needs it.

        Raises:
            SettingsError: it cannot be kept, or what is kept is no key.
        """
        text = kept_value(instance, names.SIGNING_KEY)
        if text is None:
            text = keep_value(instance, names.SIGNING_KEY, secrets.token_hex(KEY_BYTES))
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise SettingsError(
                f"{names.SIGNING_KEY} in Dagster's database (table kvs) is no key of ours: delete that row, and reset "
                "the cursors of the Jenkins sensors, which then record anew what Jenkins still has"
            )
        return cls(pipeline, key)

    def sign(self, partition: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The signature of a record that is made now.

        Args:
            partition: the build's partition key.
            record: all that is believed of the build, as plain JSON.
        """
        recorded_at = time.time_ns() // 1_000_000
        return {"recorded_at": recorded_at, "hmac": self._mac(partition, recorded_at, record)}

    def recorded_at(self, partition: str, record: object, signature: object) -> int | None:
        """When a record was signed, in milliseconds since 1970; None: it is not ours.

        The time is signed, too: else an old record, reported again, would pass for the latest.
        """
        moment, given = (
            (signature.get("recorded_at"), signature.get("hmac")) if isinstance(signature, Mapping) else (None, None)
        )
        if type(moment) is not int or not isinstance(given, str):
            return None
        try:
            expected = self._mac(partition, moment, record)
        except (ValueError, TypeError, RecursionError):  # nothing that we would have written
            return None
        return moment if hmac.compare_digest(expected.encode(), given.encode(errors="replace")) else None

    def _mac(self, partition: str, moment: int, record: object) -> str:
        signed = ["orchestrator build", _VERSION, self.pipeline, partition, moment, record]
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()
