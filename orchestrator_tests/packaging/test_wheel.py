"""What `pip install` of the wheel brings: the product and nothing else, serving pipelines that stand elsewhere."""

from __future__ import annotations

import signal
import zipfile
from pathlib import Path

import pytest
import requests

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import all_gone, running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.installation import Installation, uv

pytestmark = pytest.mark.packaging

TOKEN = "a-token-of-the-ui-for-the-tests-only"

CHURN = """
type: orchestrator.pipeline.component.TrainingPipeline
attributes:
  settings: {JENKINS_JOB_NAME: team/churn}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    lock = str(PROJECT / "requirements.lock")
    uv("build", "--quiet", "--wheel", "--out-dir", str(directory), "--build-constraint", lock, str(PROJECT))
    (file,) = directory.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installation:
    installation = Installation(tmp_path_factory.mktemp("installation"))
    lock = str(PROJECT / "requirements.lock")
    uv("pip", "install", "--quiet", "--python", str(installation.python), "--constraint", lock, str(wheel))
    return installation


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "churn").mkdir()
    (folder / "churn" / "defs.yaml").write_text(CHURN)
    return {"ORCHESTRATOR_DEFS": str(folder)}


def test_the_wheel_holds_the_product_whole_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    own = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    tracked = {
        str(file.relative_to(PROJECT))
        for file in (PROJECT / "orchestrator").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert own == tracked | {"orchestrator/dagster.yaml", "orchestrator/workspace.yaml"}
    assert "orchestrator/remote/supervisor.sh" in own


def test_a_folder_of_pipelines_elsewhere_is_valid(installation: Installation, settings: dict[str, str]) -> None:
    words = [installation.program("dagster"), "definitions", "validate", "-m", "orchestrator.definitions"]
    checked = installation.run(words, settings={**settings, "DAGSTER_HOME": ""})
    assert checked.returncode == 0, checked.stderr


def test_a_folder_of_pipelines_elsewhere_is_served(installation: Installation, settings: dict[str, str]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(
        "serve",
        "--port",
        str(port),
        cwd=installation.directory,
        program=[installation.program("orchestrator")],
        environment=installation.environment(**settings, UI_TOKEN=TOKEN),
    ) as orchestrator:
        orchestrator.await_output(f"Dagster runs on {url}")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert requests.get(f"{url}/server_info", headers=headers, timeout=30).ok
        with DagsterApi(url, token=TOKEN) as dagster:
            assert dagster.location_error() is None
        query = "{ assetNodes { assetKey { path } } }"
        answer = requests.post(f"{url}/graphql", json={"query": query}, headers=headers, timeout=30).json()
        assets = ["/".join(node["assetKey"]["path"]) for node in answer["data"]["assetNodes"]]
        assert {"churn/jenkins_build", "churn/trained_model"} <= set(assets)
        family = orchestrator.family()
        assert orchestrator.end(signal.SIGINT) == 128 + signal.SIGINT
    assert all_gone(family)
