"""Searching MLflow runs by tags, in a search language that knows no escape in a quoted text.

https://mlflow.org/docs/latest/ml/search/search-runs
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator.errors import MlflowTooLarge
from orchestrator.resources.http import LARGEST_ANSWER
from orchestrator.resources.mlflow.answers import Run

RUNS_PER_PAGE = 200
LARGEST_PAGE_BYTES = 8 * 2**20
"""A common run has 5 kB. Read into Python, a page takes several times as much, and the janitor shares its process."""


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


def search_body(
    experiment_id: str | Sequence[str],
    conditions: Sequence[str],
    page_token: str = "",
    *,
    page_size: int = RUNS_PER_PAGE,
    oldest_first: bool = False,
    deleted_too: bool = False,
) -> dict[str, object]:
    """What `runs/search` is sent: one page of the runs that nobody deleted, newest first."""
    body: dict[str, object] = {
        "experiment_ids": [experiment_id] if isinstance(experiment_id, str) else list(experiment_id),
        "filter": " AND ".join(conditions),
        "run_view_type": "ALL" if deleted_too else "ACTIVE_ONLY",
        "order_by": [f"attributes.start_time {'ASC' if oldest_first else 'DESC'}"],
        "max_results": page_size,
    }
    return body | ({"page_token": page_token} if page_token else {})


class RunSearch:
    """One search through all pages, bounded in pages, bytes and time.

    Whoever may log to the server decides how large a run is, and how many there are: a page that is too large is asked
    for again in smaller ones, and a single run that is too large costs only itself, because those beyond it are read
    from the other end.

    Attributes:
        gap: why not all runs were looked at, in one sentence; empty as long as all were.

    Args:
        experiment_id: where to look; several may be given.
        conditions: as in `search_body`.
        ask: sends the body of a search, and reads a page and the token of the next one.
        wanted: whether a run that is found is one of those that are looked for.
        longest_seconds: after this time no further page is asked for.
        deleted_too: whether runs that somebody deleted are looked at.
    """

    def __init__(
        self,
        experiment_id: str | Sequence[str],
        conditions: Sequence[str],
        *,
        ask: Callable[[dict[str, object], int], tuple[list[Run], str]],
        wanted: Callable[[Run], bool],
        longest_seconds: float,
        deleted_too: bool = False,
    ) -> None:
        self.gap = ""
        self._experiment_id = experiment_id
        self._conditions = conditions
        self._deleted_too = deleted_too
        self._ask = ask
        self._wanted = wanted
        self._end = time.monotonic() + longest_seconds
        self._page_size = RUNS_PER_PAGE

    def runs(self) -> Iterator[Run]:
        """The runs, newest first; where one in the middle cannot be read, then the others, oldest first.

        Raises:
            MlflowError: the server did not answer well.
        """
        seen: set[str] = set()
        for oldest_first in (False, True):
            try:
                for run in self._one_way(oldest_first=oldest_first):
                    if run.id not in seen and self._wanted(run):
                        seen.add(run.id)
                        yield run
                return
            except MlflowTooLarge as error:
                self.gap = f"a run is too large to be read ({error})"

    def _one_way(self, *, oldest_first: bool) -> Iterator[Run]:
        token, tokens, empty = "", {""}, 0
        while True:
            body = search_body(
                self._experiment_id,
                self._conditions,
                token,
                page_size=self._page_size,
                oldest_first=oldest_first,
                deleted_too=self._deleted_too,
            )
            try:
                page, following = self._ask(body, LARGEST_PAGE_BYTES if self._page_size > 1 else LARGEST_ANSWER)
            except MlflowTooLarge:
                if self._page_size == 1:
                    raise
                self._page_size = max(1, self._page_size // 6)
            else:
                yield from page
                empty = 0 if page else empty + 1
                if following in tokens or empty > _EMPTY_PAGES:  # the last page, or a server whose pages never end
                    return
                tokens.add(following)
                token = following
            if time.monotonic() >= self._end:
                self.gap = "there are too many, or too large ones, for the time there is"
                return


_EMPTY_PAGES = 50
"""So many pages without a run that can be read may follow each other."""
