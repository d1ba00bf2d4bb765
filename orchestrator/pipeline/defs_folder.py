"""Loads a folder of pipelines, such as `orchestrator/defs`, so that one bad file costs one pipeline."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import dagster as dg

from orchestrator import names
from orchestrator.errors import SettingsError
from orchestrator.pipeline import watched
from orchestrator.pipeline.component import TrainingPipeline, at_odds, doubled
from orchestrator.pipeline.faults import fault_of, fault_of_text, line_of
from orchestrator.settings.groups import InstallationSettings
from orchestrator.settings.source import SettingsSource

OWN_DEFS = Path(__file__).parents[1] / "defs"

YAML_NAMES = ("defs.yaml", "defs.yml", "component.yaml")
"""What Dagster takes for a component's file, in this order."""

_IGNORED = re.compile(r"__pycache__|\..*")


@dataclass(frozen=True)
class BrokenPipeline:
    """A folder (or a Python file) that cannot be loaded.

    Attributes:
        path: relative to the folder of all pipelines.
        fault: `file:line: sentence`, one line each.
        names: what the pipeline's machines may be tagged with: the folder's name, and each `name` in its file.
    """

    path: Path
    fault: str
    names: frozenset[str]


@dataclass(frozen=True)
class _Unit:
    path: Path
    file: Path
    definitions: dg.Definitions
    pipelines: tuple[TrainingPipeline, ...] = ()
    tree: dg.ComponentTree | None = None


@dataclass(frozen=True)
class DefsFolder:
    """All that stands in a folder of pipelines.

    Attributes:
        definitions: of everything readable, and a red check for each pipeline that is not.
        pipelines: the readable ones.
        broken: the others.
    """

    definitions: dg.Definitions
    pipelines: tuple[TrainingPipeline, ...] = ()
    broken: tuple[BrokenPipeline, ...] = field(default=())

    @property
    def watched(self) -> watched.WatchedPipelines:
        """What the janitor needs of them."""
        return watched.WatchedPipelines(
            settings=tuple(pipeline.pipeline_settings() for pipeline in self.pipelines),
            broken=frozenset(name for broken in self.broken for name in broken.names),
        )


def folder_of_pipelines() -> Path:
    """What ORCHESTRATOR_DEFS names, else the folder in the package.

    Raises:
        SettingsError: ORCHESTRATOR_DEFS cannot be a path.
    """
    return SettingsSource().read(InstallationSettings).defs or OWN_DEFS


def load_defs_folder(folder: Path) -> DefsFolder:
    """Load each pipeline by itself, in a `ComponentTree` of its own: Dagster's tree for all fails as a whole.

    Args:
        folder: holds a folder for each pipeline; may be outside of any Python package, and needs no pyproject.toml.

    Raises:
        SettingsError: there is no such folder.
    """
    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder} (ORCHESTRATOR_DEFS names the folder of the pipelines)")
    with warnings.catch_warnings(), watched.not_remembering():
        for category in (dg.BetaWarning, dg.PreviewWarning):  # of Dagster, about what itself does here
            warnings.simplefilter("ignore", category)
        return _load_all(folder.absolute())


def _load_all(folder: Path) -> DefsFolder:
    root = _package_of(folder)
    units: list[_Unit] = []
    broken: list[BrokenPipeline] = []
    for path in _top(folder):
        try:
            files = list(_files(path))
        except OSError as error:
            broken.append(_broken(folder, path, f"{path}:1: cannot be read: {error.strerror}"))
            continue
        if not files:
            broken.append(_broken(folder, path, f"{path}:1: this folder holds no defs.yaml; add one, or remove it"))
        for file in files:
            result = _load(root, folder, file)
            if isinstance(result, _Unit):
                units.append(result)
            else:
                broken.append(result)
    faults = _at_odds(units) | _twins(units)
    broken += [_broken(folder, unit.path, faults[unit.file]) for unit in units if unit.file in faults]
    broken.sort(key=lambda pipeline: pipeline.path)
    good = [unit for unit in units if unit.file not in faults]
    return DefsFolder(
        definitions=dg.Definitions.merge(
            *(unit.definitions for unit in good), *map(_red_check, broken), _component_docs(good)
        ),
        pipelines=tuple(pipeline for unit in good for pipeline in unit.pipelines),
        broken=tuple(broken),
    )


def _component_docs(units: Sequence[_Unit]) -> dg.Definitions:
    """The descriptions of all installed component types, which Dagster's tree adds once for the UI."""
    trees = (unit.tree for unit in units if unit.tree)
    return dg.Definitions(metadata=next((tree.build_defs().metadata for tree in trees), {}))


def _package_of(folder: Path) -> ModuleType:
    """A package whose modules are this folder's, for the Python files and local component types in there."""
    if folder == OWN_DEFS:
        return importlib.import_module("orchestrator.defs")
    module = ModuleType(f"orchestrator_defs_{_digest(str(folder.resolve()))}")
    module.__path__ = [str(folder)]
    module.__file__ = None
    sys.modules[module.__name__] = module
    return module


def _top(folder: Path) -> Iterator[Path]:
    """What is loaded by itself: the folder if it is one pipeline, else all that stands in it."""
    if _yaml_of(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if not _IGNORED.fullmatch(path.name) and (path.is_dir() or path.suffix == ".py"):
            yield path


def _files(path: Path) -> Iterator[Path]:
    """The defs.yaml or Python files at or under this path that Dagster would load, each the top of its own tree."""
    if path.is_file():
        if path.suffix == ".py":
            yield path
    elif file := _yaml_of(path):
        yield file
    else:
        for child in sorted(path.iterdir()):
            if not _IGNORED.fullmatch(child.name):
                yield from _files(child)


def _yaml_of(folder: Path) -> Path | None:
    return next((folder / name for name in YAML_NAMES if (folder / name).exists()), None)


def _load(root: ModuleType, folder: Path, file: Path) -> _Unit | BrokenPipeline:
    path = file if file.suffix == ".py" else file.parent
    fault = None if file.suffix == ".py" else fault_of_text(file)
    if fault:
        return _broken(folder, path, fault)
    try:
        name = ".".join([root.__name__, *_parts(path.relative_to(folder))])
        if file.suffix == ".py":
            return _Unit(path, file, _of_python(importlib.import_module(name)))
        tree = dg.ComponentTree.from_module(_module(name, path), project_root=folder)
        pipelines = tuple(tree.get_all_components(of_type=TrainingPipeline))
        return _Unit(path, file, tree.build_defs(path), pipelines, tree)
    except Exception as error:  # noqa: BLE001 - whatever a user's file raises costs that file, and is shown
        return _broken(folder, path, fault_of(error, file))


def _module(name: str, folder: Path) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    module.__file__ = None
    return module


def _of_python(module: ModuleType) -> dg.Definitions:
    """As Dagster has it: a module's one Definitions, else all that it defines."""
    given = [value for value in vars(module).values() if isinstance(value, dg.Definitions)]
    return given[0] if len(given) == 1 else dg.load_definitions_from_module(module)


def _broken(folder: Path, path: Path, fault: str) -> BrokenPipeline:
    relative = path.relative_to(folder) if path != folder else Path(folder.name)
    return BrokenPipeline(path=relative, fault=fault, names=frozenset({_parts(relative)[-1], *_names_in(path)}))


def _names_in(path: Path) -> Sequence[str]:
    """Each `name` that a defs.yaml gives, also one that is no YAML."""
    file = _yaml_of(path) if path.is_dir() else None
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file else ""
    except OSError:
        return []
    return re.findall(r"""(?m)\bname\s*:\s*["']?([A-Za-z][A-Za-z0-9_]*)""", text)


def _twins(units: Sequence[_Unit]) -> dict[Path, str]:
    """File → fault, for pipelines that share a name; a machine of that name could be either's."""
    owners = defaultdict(list)
    for unit in units:
        for pipeline in unit.pipelines:
            owners[pipeline.name].append(unit)
    return {
        unit.file: f"{unit.file}:{line_of('name', unit.file)}: {doubled(name, [twin.path for twin in twins])}"
        for name, twins in owners.items()
        if len(twins) > 1
        for unit in twins
    }


def _at_odds(units: Sequence[_Unit]) -> dict[Path, str]:
    """File → fault, for pipelines that choose the champion of one registered model in different ways."""
    rivals = defaultdict(list)
    for unit in units:
        for pipeline in unit.pipelines:
            if champion := pipeline.model_rules().champion:
                rivals[champion.model].append((unit, pipeline.name, (champion.metric, champion.goal)))
    return {
        unit.file: f"{unit.file}:{line_of('champion', unit.file)}: {at_odds([name for _, name, _ in found])}"
        for found in rivals.values()
        if len({way for _, _, way in found}) > 1
        for unit, _, _ in found
    }


def _red_check(broken: BrokenPipeline) -> dg.Definitions:
    """The asset `<folder>/configuration`, whose check says what is wrong."""
    parts = [_key_part(part) for part in _parts(broken.path)]
    key = dg.AssetKey([*parts, names.CONFIGURATION])
    group = re.sub(r"[^A-Za-z0-9_]", "_", "__".join(parts))
    spec = dg.AssetSpec(
        key,
        group_name=group,
        description=f"This pipeline cannot be loaded. {broken.fault}. Correct it, then reload the code location.",
    )
    check = dg.AssetCheckSpec(name=names.READABLE, asset=key, description=broken.fault)

    @dg.multi_asset_check(specs=[check], name=f"{group}_{_digest(str(broken.path))}_{names.READABLE}")
    def readable() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            asset_key=key,
            check_name=names.READABLE,
            passed=False,
            description=broken.fault,
            metadata={"fault": broken.fault},
        )

    return dg.Definitions(assets=[spec], asset_checks=[readable])


def _parts(path: Path) -> tuple[str, ...]:
    return (path.with_suffix("") if path.suffix == ".py" else path).parts


def _key_part(folder: str) -> str:
    """The folder's name, if Dagster takes it, else one that is as good and no other folder's."""
    near = re.sub(r"[^A-Za-z0-9_.-]", "_", folder)
    return folder if near == folder else f"{near}_{_digest(folder)}"


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
