"""A person approves a deployment in a real Chromium: the UI shows the asset out of date, and Materialize deploys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from selenium.webdriver import ActionChains, Keys

from orchestrator import names
from orchestrator.definitions import shared
from orchestrator.operate.home import prepare_home
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.champion_asset import trained_model_key
from orchestrator.pipeline.models.declared import ChampionBlock
from orchestrator.pipeline.models.deployment import DeploymentBlock
from orchestrator.resources.targets import DirectoryTarget
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.stack import COMPONENT
from orchestrator_tests.support.hostile_page import Browser
from orchestrator_tests.support.real_models import RealModels
from orchestrator_tests.support.ui import REPOSITORY, USERS, Ui, served
from orchestrator_tests.support.ui_in_chromium import button, buttons, click, log_in
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

PAGE = "/assets/churn/deployed_model"
RUNS = "{runsOrError{... on Runs{results{jobName status tags{key value}}}}}"
LAUNCH = (
    f'mutation{{launchRun(executionParams:{{selector:{{{REPOSITORY},jobName:"{names.deployment_job("churn")}"}},'
    'runConfigData:"{}"}){__typename}}'
)


@dataclass
class Approval:
    """A pipeline whose champion waits for approval, and its UI."""

    ui: Ui
    target: DirectoryTarget

    def in_use(self) -> str:
        release = self.target.state()
        return release.version if release else ""

    def launched(self, browser: Browser) -> list[str]:
        """By whom each run was launched that the UI knows of; empty: by the tests, before there was a UI."""
        runs = browser.graphql(RUNS)["data"]["runsOrError"]["results"]
        tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in runs]
        return [found.get(names.RunTag.LAUNCHED_BY, "") for found in tags]


@pytest.fixture(scope="module")
def approval(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Approval]:
    """Version 1 is in use, and version 2 the champion."""
    folder = tmp_path_factory.mktemp("approval")
    models = RealModels.on(mlflow_server)
    champion = {"metric": "accuracy", "goal": "maximize", "model": models.rule.model}
    deployment = {"when": "approval", "target": {"directory": str(folder / "srv")}}
    attributes = {"name": "churn", "champion": champion, "deployment": deployment}
    (folder / "defs/churn").mkdir(parents=True)
    (folder / "defs/churn/defs.yaml").write_text(yaml.safe_dump({"type": COMPONENT, "attributes": attributes}))
    home = folder / ".dagster"
    home.mkdir()
    prepare_home(home)
    settings = {**mlflow_server.env(), "DAGSTER_HOME": str(home), "ORCHESTRATOR_DEPLOYMENT": "lab"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        pipeline = TrainingPipeline(
            name="churn",
            champion=ChampionBlock.model_validate(champion),
            deployment=DeploymentBlock.model_validate(deployment),
        )
        built = pipeline.build_defs(dg.ComponentTree.for_test().load_context)
        definitions = dg.Definitions.merge(built, shared())
        with dg.DagsterInstance.get() as dagster:
            for build, accuracy in ((1, 0.8), (2, 0.9)):
                dagster.add_dynamic_partitions("churn_builds", [str(build)])
                metadata = {"MLflow run ID": models.train(accuracy, build=build)}
                key = trained_model_key("churn")
                dagster.report_runless_asset_event(
                    dg.AssetMaterialization(key, partition=str(build), metadata=metadata)
                )
                jobs = [names.champion_job("churn"), *([names.deployment_job("churn")] if build == 1 else [])]
                for job in jobs:
                    assert definitions.resolve_job_def(job).execute_in_process(instance=dagster).success
    with served(folder, users=USERS, files={}, **settings, ORCHESTRATOR_DEFS=str(folder / "defs")) as ui:
        yield Approval(ui, DirectoryTarget(folder / "srv"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser.start(tmp_path)
    try:
        yield browser
    finally:
        browser.driver.quit()


def test_a_viewer_sees_that_it_is_out_of_date_and_cannot_deploy(approval: Approval, browser: Browser) -> None:
    log_in(browser, approval.ui, "vic", PAGE)
    until(lambda: buttons(browser, "Unsynced"))
    assert button(browser, "Materialize").get_attribute("disabled")
    assert "UnauthorizedError" in str(browser.graphql(LAUNCH))
    assert approval.in_use() == "1"


def test_a_person_approves_the_version_that_waits(approval: Approval, browser: Browser) -> None:
    log_in(browser, approval.ui, "lou", PAGE)
    until(lambda: buttons(browser, "Unsynced"))
    assert set(approval.launched(browser)) == {""}
    assert approval.in_use() == "1"

    click(browser, "//button[contains(., 'Materialize')]/following::button[1]")
    click(browser, "//*[contains(text(), 'Open launchpad')]")
    click(browser, "//*[contains(@class, 'CodeMirror')]//*[contains(@class, 'cm-string')]")
    ActionChains(browser.driver).send_keys(Keys.END, Keys.ARROW_LEFT, "2").perform()
    editor = "return document.querySelector('.CodeMirror').CodeMirror.getValue()"
    assert 'version: "2"' in browser.driver.execute_script(editor)
    until(lambda: len(buttons(browser, "Materialize")) == 2)
    click(browser, "//button[contains(., 'Materialize')]")
    until(lambda: "/runs/" in browser.driver.current_url)

    until(lambda: approval.in_use() == "2", seconds=180, every=0.5)
    assert sorted(approval.launched(browser))[-1] == "lou"
    browser.driver.get(f"{approval.ui.origin}{PAGE}")
    until(lambda: buttons(browser, "Materialize") and not buttons(browser, "Unsynced"), every=0.5)
    assert browser.console_errors() == []
