"""People work in the UI in a real Chromium: log in, look, launch, cancel, log out, and nothing red on its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from orchestrator import names
from orchestrator_tests.support.hostile_page import Browser
from orchestrator_tests.support.ui import USERS, Ui, served
from orchestrator_tests.support.ui_in_chromium import button, buttons, log_in
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

LAUNCHPAD = "/locations/orchestrator/jobs/lasting/playground"


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with served(tmp_path_factory.mktemp("ui"), users=USERS) as ui:
        yield ui


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser.start(tmp_path)
    try:
        yield browser
    finally:
        browser.driver.quit()


def log_out(browser: Browser, ui: Ui, name: str) -> None:
    browser.driver.find_element(By.ID, "log-out").click()
    until(lambda: "Log out of orchestrator" in browser.driver.title)
    assert f"You are logged in as {name}" in browser.driver.page_source
    button(browser, "Log out").click()
    until(lambda: browser.driver.title == "Log in to orchestrator")
    browser.driver.get(f"{ui.origin}/runs")
    assert browser.driver.title == "Log in to orchestrator"


def test_a_viewer_looks_and_the_ui_offers_nothing_else(ui: Ui, browser: Browser) -> None:
    log_in(browser, ui, "vic", LAUNCHPAD)
    assert button(browser, "Launchpad").get_attribute("disabled")
    assert not buttons(browser, "Launch Run")
    browser.driver.get(f"{ui.origin}/assets/training/trained_model")
    assert button(browser, "Materialize").get_attribute("disabled")
    answer = browser.graphql('mutation{setConcurrencyLimit(concurrencyKey:"x",limit:2)}')
    assert "UnauthorizedError" in str(answer)
    browser.console_errors()  # of that very request
    log_out(browser, ui, "vic")
    assert browser.console_errors() == []


@pytest.mark.parametrize("name", ["lou", "ada"])
def test_who_may_launch_launches_cancels_and_logs_out(ui: Ui, browser: Browser, name: str) -> None:
    log_in(browser, ui, name, LAUNCHPAD)
    until(lambda: buttons(browser, "Launch Run")[-1:] and button(browser, "Launch Run").is_enabled(), seconds=60)
    button(browser, "Launch Run").click()
    until(lambda: "/runs/" in browser.driver.current_url, seconds=60)
    run_id = browser.driver.current_url.rpartition("/runs/")[2].partition("?")[0]

    def run() -> str:
        return str(browser.graphql(f'{{runOrError(runId:"{run_id}"){{... on Run{{status tags{{key value}}}}}}}}'))

    until(lambda: "STARTED" in run(), seconds=120)
    assert f"{{'key': '{names.RunTag.LAUNCHED_BY}', 'value': '{name}'}}" in run()
    button(browser, "Terminate").click()
    until(lambda: len(buttons(browser, "Terminate")) > 1, seconds=60)
    buttons(browser, "Terminate")[-1].click()
    until(lambda: "CANCELED" in run(), seconds=120)
    browser.driver.get(f"{ui.origin}/runs")
    log_out(browser, ui, name)
    assert browser.console_errors() == []
