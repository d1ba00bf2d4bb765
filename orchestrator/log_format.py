"""`LOG_FORMAT=json`: one JSON object a line, with the keys that Dagster's own `--log-format json` has."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from orchestrator.printable import printable

OUTPUT = "output"
"""The logger of a line that no logger has written."""

OF_DAGSTER = ("dagster", "dagit", "dagster-webserver")
"""Loggers that Dagster gives handlers of its own."""


class JsonFormatter(logging.Formatter):
    """Writes a record as `timestamp, level, logger, event`, and the run and step that it belongs to.

    What is logged of a run outside of it names it by `extra={"run_id": ...}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        meta: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}  # of what is logged in a run
        entry: dict[str, object] = {
            "timestamp": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": printable(str(meta.get("orig_message") or record.getMessage())),
        }
        entry |= {name: meta[name] for name in ("run_id", "job_name", "step_key") if meta.get(name)}
        if run_id := getattr(record, "run_id", None):
            entry["run_id"] = run_id
        if exception := self._exception(record, meta):
            entry["exception"] = printable(exception)
        return json.dumps(entry)

    def _exception(self, record: logging.LogRecord, meta: Mapping[str, Any]) -> str | None:
        if record.exc_info and record.exc_info[0]:
            return self.formatException(record.exc_info)
        error = getattr(getattr(meta.get("dagster_event"), "event_specific_data", None), "error", None)
        return str(error.to_string()) if error else None


def use_json(*, level: int = logging.INFO) -> None:
    """Have this process write all that it logs as JSON on standard error, uncaught errors too.

    Args:
        level: from which level on our own modules log; of others it is a warning.
    """
    formatter = JsonFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(lambda record: not hasattr(record, "dagster_meta"))  # the run's own console has written it
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    _reformat(root, formatter)
    for name in OF_DAGSTER:
        logger = logging.getLogger(name)
        _reformat(logger, formatter)
        if logger.handlers:
            logger.propagate = False
    logging.captureWarnings(True)
    ours = logging.getLogger(__package__)
    if not ours.isEnabledFor(level):
        ours.setLevel(level)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def in_use() -> bool:
    """Whether this process writes its log as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _reformat(logger: logging.Logger, formatter: logging.Formatter) -> None:
    for handler in logger.handlers:
        handler.setFormatter(formatter)
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)  # of standard output nothing is believed, see `log_lines`


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value:
        _log_uncaught(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        logging.getLogger(__package__).critical("Ended by an error", exc_info=(kind, error, trace))


def timestamp(seconds: float | None = None) -> str:
    """A point in time, as each record has it.

    Args:
        seconds: since 1970; default: now.
    """
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
