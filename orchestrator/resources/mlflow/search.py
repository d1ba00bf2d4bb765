"""Searching MLflow runs by tags, in a search language that knows no escape in a quoted text.

https://mlflow.org/docs/latest/ml/search/search-runs
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

RUNS_PER_PAGE = 200


def conditions_on(tags: Mapping[str, str]) -> list[str]:
    """Conditions that runs with these tags fulfil.

    They may let others through: in a value, what is not a plain character becomes a wildcard. So the
    caller compares the tags of what is found.
    """
    conditions = []
    for key, value in tags.items():
        pattern = re.sub(r"[^A-Za-z0-9 ./:#@+=-]+", "%", value)
        conditions.append(f"tags.`{key}` {'=' if pattern == value else 'LIKE'} '{pattern}'")
    return conditions


def search_body(experiment_id: str, conditions: Sequence[str], page_token: str = "") -> dict[str, object]:
    """What `runs/search` is sent: one page of the runs that nobody deleted, newest first."""
    body: dict[str, object] = {
        "experiment_ids": [experiment_id],
        "filter": " AND ".join(conditions),
        "run_view_type": "ACTIVE_ONLY",
        "order_by": ["attributes.start_time DESC"],
        "max_results": RUNS_PER_PAGE,
    }
    return body | ({"page_token": page_token} if page_token else {})
