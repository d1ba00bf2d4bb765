"""The pipelines that the janitor watches."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.settings.source import SettingsSource


@dataclass(frozen=True)
class WatchedPipelines:
    """What the janitor is told of the pipelines of its code location.

    Attributes:
        settings: where each readable pipeline's settings come from; its name is in there.
        broken: names of pipelines whose defs.yaml cannot be used, as far as they are known: the folder's, and what the
            file gives as `name`. Nothing is known of their settings, so that their machines and MLflow runs are left
            alone, but for the deadline that each machine carries in its own tag.
    """

    settings: tuple[SettingsSource, ...] = ()
    broken: frozenset[str] = frozenset()


_remembered: list[weakref.ref[SettingsSource]] = []


def remember(settings: SettingsSource) -> None:
    """Note that definitions of this pipeline have been built in this process."""
    _remembered[:] = [reference for reference in _remembered if reference() is not None]
    _remembered.append(weakref.ref(settings))


@contextmanager
def not_remembering() -> Iterator[None]:
    """Forget what is built in here, because the janitor is handed it by its builder.

    Else whoever imports `orchestrator.definitions` for `shared()` would watch the pipelines of our own folder, too.
    """
    before = list(_remembered)
    try:
        yield
    finally:
        _remembered[:] = before


def pipelines_of_this_process() -> WatchedPipelines:
    """Every pipeline whose definitions this process holds; of two with one name, the one that was built last.

    That is how `definitions.shared()` finds the pipelines of somebody else's Dagster project, however these were
    loaded (`load_from_defs_folder`, `Definitions.merge`, a component made in Python): a process of Dagster serves one
    code location, whose sensors are evaluated where its definitions were built. Metadata of assets could be replaced
    by the project, and would show in its UI. The references are weak: the ops and sensors of a pipeline hold its
    settings, so that definitions which are dropped are forgotten.
    """
    live = (reference() for reference in _remembered)
    by_name = {settings.pipeline: settings for settings in live if settings is not None}
    return WatchedPipelines(settings=tuple(by_name.values()))
