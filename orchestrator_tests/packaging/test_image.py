"""What the container holds, installed by the Dockerfile's own words: it imports, starts, answers and stops."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import requests

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import all_gone, running
from orchestrator_tests.support.dockerfile import PROJECT, copy_into, install_command
from orchestrator_tests.support.installation import Installation, uv

pytestmark = pytest.mark.packaging

TOKEN = "a-token-of-the-ui-for-the-tests-only"

OF_AN_EXTRA = ("celery", "dagster_celery", "dagster_postgres", "kombu", "psycopg2", "redis")
"""What is imported only where a setting asks for it, which then names the extra that is missing."""

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, orchestrator
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not module.name.endswith(".__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in {OF_AN_EXTRA!r}:
                raise
    print(module.name)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    directory = tmp_path_factory.mktemp("image")
    files = directory / "opt"
    files.mkdir()
    copy_into(files)
    installation = Installation(directory)
    uv(*install_command(installation.python), cwd=files)
    return installation


def test_every_module_of_the_product_imports(image: Installation) -> None:
    imported = image.run([str(image.python), "-c", IMPORT_EVERYTHING])
    assert imported.returncode == 0, imported.stderr
    files = [file for file in (PROJECT / "orchestrator").rglob("*.py") if (file.parent / "__init__.py").exists()]
    names = {".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert set(imported.stdout.split()) == names - {"orchestrator"}


def test_neither_sandbox_nor_tests_are_in(image: Installation) -> None:
    found = image.run([str(image.python), "-c", "import orchestrator; print(orchestrator.__file__)"])
    assert sorted(path.name for path in Path(found.stdout).parents[1].iterdir() if path.is_dir()) == ["orchestrator"]
    demo = image.run([image.program("orchestrator"), "demo"])
    assert demo.returncode == 1
    assert demo.stderr.startswith("orchestrator: the demo needs the sandbox")


def test_what_the_container_starts_answers_loads_the_pipelines_and_stops(image: Installation) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = ("serve", "--host", "127.0.0.1", "--port", str(port))
    environment = image.environment(ORCHESTRATOR_DEPLOYMENT="team-a", MAX_INSTANCES="3", UI_TOKEN=TOKEN)
    with running(
        *words, cwd=image.directory, program=[image.program("orchestrator")], environment=environment
    ) as orchestrator:
        orchestrator.await_output(f"Dagster runs on {url}")
        assert requests.get(f"{url}/health/live", timeout=30).ok
        with DagsterApi(url, token=TOKEN) as dagster:
            assert dagster.location_error() is None
        family = orchestrator.family()
        assert len(family) >= 5  # ourselves, and webserver and daemon with a code server each
        assert orchestrator.end() == 128 + signal.SIGTERM
    assert all_gone(family)
