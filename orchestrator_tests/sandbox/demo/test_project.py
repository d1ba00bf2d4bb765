"""The commits of the demo: an honest mistake, its correction, and a change that can be made again and again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_sandbox.demo.project import another_training, history
from orchestrator_sandbox.git import EXAMPLE


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "project"))


def test_the_project_s_own_tests_find_the_mistake_and_the_correction_takes_it_back(tree: Path) -> None:
    mistake, correction, _ = history()
    before = (tree / "src/digits/data.py").read_text()
    mistake.edit(tree)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tree, capture_output=True, text=True
    )
    assert tested.returncode == 1
    assert "test_no_picture_is_in_two_sets" in tested.stdout
    correction.edit(tree)
    assert (tree / "src/digits/data.py").read_text() == before


def test_every_demo_can_train_for_longer_than_the_one_before(tree: Path) -> None:
    assert "epochs: 15\n" in (tree / "train.yaml").read_text()
    history()[-1].edit(tree)
    assert "epochs: 20\n" in (tree / "train.yaml").read_text()
    another_training().edit(tree)
    assert "epochs: 25\n" in (tree / "train.yaml").read_text()
