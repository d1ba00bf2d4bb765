"""Models and releases to deploy; for tests of the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.resources.targets import ModelFolder, Release

FILES = {
    "MLmodel": "flavors: {}\n",
    "serving_input_example.json": '{"inputs": [[1.0, 2.0], [3.0, 4.0]]}',
    "data/weights.bin": "12345",
}


def release(version: int | str, **fields: Any) -> Release:
    known = {"model": "churn", "run_id": f"run{version}", "build": "7", "commit": "c0ffee", "pipeline": "churn"}
    return Release(version=str(version), **{**known, "deployment": "lab", **fields})


def model_folder(directory: Path, version: int | str = 1, **files: str) -> ModelFolder:
    """A model's files on disk.

    Args:
        directory: in which its folder is made.
        version: stands in `version.txt`.
        files: further ones, or others.
    """
    folder = directory / f"model-{version}"
    for name, text in {**FILES, "version.txt": str(version), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return ModelFolder.of(folder)
