"""What a person does in the UI in a Chromium: log in, and find buttons that appear in their own time."""

from __future__ import annotations

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from orchestrator_tests.support.hostile_page import Browser
from orchestrator_tests.support.ui import PASSWORD, Ui
from orchestrator_tests.support.waiting import until


def buttons(browser: Browser, text: str) -> list[WebElement]:
    try:
        return [button for button in browser.driver.find_elements(By.TAG_NAME, "button") if text in button.text]
    except StaleElementReferenceException:  # the page was drawing
        return []


def button(browser: Browser, text: str) -> WebElement:
    return until(lambda: buttons(browser, text), seconds=60)[-1]


def click(browser: Browser, xpath: str) -> None:
    """Click the last element that is found so, as soon as there is one, it can be used, and nothing covers it."""

    def clicked() -> bool:
        found = browser.driver.find_elements(By.XPATH, xpath)
        try:
            if not found or not found[-1].is_enabled():
                return False
            found[-1].click()
        except (StaleElementReferenceException, ElementNotInteractableException, ElementClickInterceptedException):
            return False
        return True

    until(clicked, seconds=60)


def log_in(browser: Browser, ui: Ui, name: str, path: str) -> None:
    browser.open_ui(f"{ui.origin}{path}")
    assert browser.driver.title == "Log in to orchestrator"
    browser.driver.find_element(By.NAME, "username").send_keys(name)
    browser.driver.find_element(By.NAME, "password").send_keys(PASSWORD)
    button(browser, "Log in").click()
    until(lambda: browser.driver.find_elements(By.ID, "log-out"), seconds=60)
