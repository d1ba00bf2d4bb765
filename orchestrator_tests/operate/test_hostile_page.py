"""A hostile web page in the operator's own browser gets nothing, while the UI beside it works.

The operator is logged in. The page tries what a page can: it sends forms, fetches, images, scripts, beacons,
WebSockets, opens windows and frames, and makes its own name lead here. It runs on a foreign site, on
other ports of this computer (whose requests carry the UI's cookie), and in a frame that has no origin.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlencode

import pytest
import requests
from rich.console import Console
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from orchestrator import names
from orchestrator_sandbox.dagster_api import ASSET_PAGE_JOB, LOCATION, REPOSITORY
from orchestrator_sandbox.demo.display import LineView
from orchestrator_sandbox.demo.loop import DemoLoop
from orchestrator_sandbox.demo.project import Commit
from orchestrator_sandbox.stack import PIPELINE, TRAINED_MODEL, Stack
from orchestrator_tests.support.hostile_page import EVIL, LIBRARY, REBOUND, Attack, Browser, HostileSite
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

ORIGINS = [f"http://{EVIL}", "http://127.0.0.1", "http://localhost"]
SECRET = "what-the-training-printed"
REPOSITORY_SELECTOR = f'repositoryName:"{REPOSITORY}",repositoryLocationName:"{LOCATION}"'
LIGHT = "name: light\nentry_points:\n  main:\n    command: python train.py\n"
ORDER = {
    "Action": "RunInstances",
    "Version": "2016-11-15",
    "InstanceType": "t3.medium",
    "MinCount": "1",
    "MaxCount": "1",
    "UserData": "I2Nsb3VkLWNvbmZpZwpib290Y21kOiBbaWRd",
}


@dataclass(frozen=True)
class Scene:
    """The sandbox with one trained model, the operator's browser with the UI, and the hostile site.

    Attributes:
        run_id: the Dagster run that trained the model.
        sensor_state: the ID that stops the janitor.
    """

    stack: Stack
    browser: Browser
    site: HostileSite
    run_id: str
    log_key: list[str]
    partition: str
    sensor_state: str

    def origin(self, host: str) -> str:
        return f"{host}:{self.site.port}"

    def state(self) -> dict[str, Any]:
        """Everything that a page must not change."""
        ui = self.browser.graphql(STATE.replace("BUILD", self.partition))
        mlflow = requests.post(
            f"{self.stack.mlflow.url}/api/2.0/mlflow/experiments/search", json={"max_results": 100}, timeout=30
        ).json()
        return {
            "dagster": ui,
            "instances": self.stack.ec2.instance_ids(),
            "builds": len(self.stack.jenkins.builds("digits")),
            "commits": (self.stack.git.head(), self.stack.git.branches()),
            "experiments": mlflow["experiments"],
        }

    def plan(self, label: str, target: str = "") -> dict[str, object]:
        """What the page knows when it attacks the UI: everything but the login."""
        mutation = f"""mutation {{
            partition: addDynamicPartition(repositorySelector: {{{REPOSITORY_SELECTOR}}},
                partitionsDefName: "{names.builds(PIPELINE)}", partitionKey: "KEY") {{ __typename }}
            pool: setConcurrencyLimit(concurrencyKey: "{names.INSTANCE_POOL}", limit: 900)
            sensor: stopSensor(id: "{self.sensor_state}") {{ __typename }}
            run: launchRun(executionParams: {{
                selector: {{{REPOSITORY_SELECTOR}, jobName: "{ASSET_PAGE_JOB}",
                    assetSelection: [{{path: {json.dumps(TRAINED_MODEL)}}}]}},
                executionMetadata: {{tags: [{{key: "dagster/partition", value: "{self.partition}"}}]}}
            }}) {{ __typename }}
        }}"""
        log = "/".join(self.log_key)
        query = f"{{capturedLogs(logKey:{json.dumps(self.log_key)}){{stdout}}}}"
        return {
            "target": target or self.stack.dagster_url,
            "label": f"planted-{label}",
            "mutation": " ".join(mutation.split()),
            "report": f"/report_asset_materialization/{PIPELINE}/jenkins_build",
            "reads": [
                "/",
                "/server_info",
                f"/graphql?query={query}",
                f"/logs/{log}/out",
                f"/download_debug/{self.run_id}",
                f"/runs/{self.run_id}",
                "/health/live",
                "/login",
            ],
            "subscription": f"subscription {query}",
        }

    def attack_ui(self, label: str, *, from_nowhere: bool = False) -> list[list[str]]:
        attack = Attack("attackUi", [self.plan(label)])
        return self.browser.attack(attack, from_nowhere=from_nowhere)


STATE = f"""{{
    assetNodeOrError(assetKey: {{path: {json.dumps(TRAINED_MODEL)}}}) {{ ... on AssetNode {{ partitionKeys }} }}
    runsOrError(limit: 1000) {{ ... on Runs {{ results {{ id status }} }} }}
    sensorsOrError(repositorySelector: {{{REPOSITORY_SELECTOR}}}) {{
        ... on Sensors {{ results {{ name sensorState {{ status }} }} }} }}
    instance {{ poolConfig {{ defaultPoolLimit }} concurrencyLimits {{ concurrencyKey slotCount }} }}
    assetOrError(assetKey: {{path: ["{PIPELINE}", "jenkins_build"]}}) {{
        ... on Asset {{ assetMaterializations(limit: 1000) {{ partition description }} }} }}
}}"""


def _train_lightly(tree: Path) -> None:
    for test in (tree / "tests").glob("test_*.py"):
        test.write_text("def test_it():\n    pass\n")
    (tree / "MLproject").write_text(LIGHT)
    (tree / "train.py").write_text(f"print('{SECRET}')\n")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Stack(tmp_path_factory.mktemp("stack")) as stack, HostileSite() as site:
        loop = DemoLoop(stack, started=time.monotonic())
        with LineView(Console(file=io.StringIO())) as view:
            loop.first_model(view, commits=[Commit("light", _train_lightly)])
        browser = Browser.start(tmp_path_factory.mktemp("chromium"))
        try:
            browser.open_ui(f"{stack.dagster_url}/?token={stack.dagster_token}")
            outcome = loop.outcome
            # Its ticks start runs of their own, and the state is to stand still.
            sensors = browser.graphql(
                f"{{sensorsOrError(repositorySelector: {{{REPOSITORY_SELECTOR}}}) "
                "{... on Sensors {results {name sensorState {id status}}}}}"
            )["data"]["sensorsOrError"]["results"]
            (janitor,) = (sensor["sensorState"] for sensor in sensors if sensor["name"] == names.JANITOR)
            assert janitor["status"] == "RUNNING"
            events = browser.graphql(
                f'{{logsForRun(runId: "{outcome.dagster_run_id}") {{... on EventConnection {{events '
                "{... on LogsCapturedEvent {fileKey}}}}}"
            )["data"]["logsForRun"]["events"]
            key = next(event["fileKey"] for event in events if "fileKey" in event)
            yield Scene(
                stack=stack,
                browser=browser,
                site=site,
                run_id=str(outcome.dagster_run_id),
                log_key=[str(outcome.dagster_run_id), "compute_logs", key],
                partition=str(outcome.partition),
                sensor_state=janitor["id"],
            )
        finally:
            browser.driver.quit()


def planted(state: dict[str, Any]) -> list[str]:
    """The ways by which a page got something through, by their names."""
    data = state["dagster"]["data"]
    keys = data["assetNodeOrError"]["partitionKeys"]
    reports = [report["description"] or "" for report in data["assetOrError"]["assetMaterializations"]]
    return sorted({key for key in [*keys, *reports] if key.startswith("planted")})


def assert_unharmed(scene: Scene, before: dict[str, Any]) -> None:
    after = scene.state()
    assert planted(after) == []
    assert after == before


@pytest.mark.parametrize("from_nowhere", [False, True])
def test_the_page_can_do_what_it_tries(scene: Scene, from_nowhere: bool) -> None:
    """Against a server without a guard, every way gets through: else the tests below would say nothing."""
    with HostileSite() as victim:
        scene.browser.open_page(scene.origin(ORIGINS[0]))
        plan = scene.plan("control", f"http://127.0.0.1:{victim.port}")
        loot = scene.browser.attack(Attack("attackUi", [plan]), from_nowhere=from_nowhere)
        ways: list[str] = scene.browser.driver.execute_script(
            f"{LIBRARY}\nreturn [...waysToSend('', (name) => name), ...waysToReport('', '', (name) => name)]"
            ".map(([name]) => name);"
        )
        sent = unquote_plus(" ".join(f"{request['path']} {request['body']}" for request in victim.received))
    assert {way for way in ways if f"planted-control-{way}" not in sent} == set()
    assert {"post-json-cors", "get-cors", "read /server_info"} <= {name for name, _ in loot}


@pytest.mark.parametrize("host", ORIGINS)
def test_a_page_gets_nothing_from_the_ui(scene: Scene, host: str) -> None:
    before = scene.state()
    scene.browser.open_page(scene.origin(host))
    assert scene.attack_ui(host.rpartition("/")[2]) == []
    assert_unharmed(scene, before)


def test_a_frame_without_an_origin_gets_nothing_from_the_ui(scene: Scene) -> None:
    before = scene.state()
    scene.browser.open_page(scene.origin("http://127.0.0.1"))
    assert scene.attack_ui("nowhere", from_nowhere=True) == []
    assert_unharmed(scene, before)


@pytest.mark.parametrize("host", ORIGINS)
@pytest.mark.parametrize(
    "enctype", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain", "query", "get"]
)
def test_a_page_that_gives_way_to_the_answer_of_its_form_changes_nothing(scene: Scene, host: str, enctype: str) -> None:
    """A request at top level carries the cookie however strict that is about sites: the ports are of one site."""
    before = scene.state()
    plan = scene.plan(f"top-{host.rpartition('/')[2]}-{enctype.rpartition('/')[2]}")
    query = str(plan["mutation"]).replace("KEY", str(plan["label"]))
    action = f"{plan['target']}/graphql"
    options: dict[str, object] = {"method": "POST", "enctype": enctype, "fields": {"query": query}}
    if enctype == "text/plain":
        options["fields"] = {f'{{"query":{json.dumps(query)},"rest":"': '"}'}
    elif enctype == "query":
        action = f"{action}?{urlencode({'query': query})}"
        options = {"method": "POST", "enctype": "text/plain", "fields": {}}
    elif enctype == "get":
        options["method"] = "GET"
    for target in ("_top", "_blank"):
        scene.browser.open_page(scene.origin(host))
        page = scene.browser.driver.current_url
        scene.browser.submit_in_place(action, {**options, "target": target})
        if target == "_top":
            until(lambda page=page: scene.browser.driver.current_url != page)  # type: ignore[misc]
        else:
            until(lambda: len(scene.browser.driver.window_handles) > 2)
    assert_unharmed(scene, before)


def test_a_name_that_is_made_to_lead_here_leads_nowhere(scene: Scene) -> None:
    before = scene.state()
    rebound = f"http://{REBOUND}:{scene.stack.port}"
    scene.browser.open_page(rebound)
    assert SECRET not in scene.browser.driver.page_source
    assert 'id="root"' not in scene.browser.driver.page_source
    own = Attack("attackUi", [scene.plan("rebound", rebound)])
    # The refusal is all that it reads: it is of the page's own origin.
    assert [entry for entry in scene.browser.attack(own) if "Refused: this is not reached under" not in entry[1]] == []
    assert_unharmed(scene, before)


def test_a_page_learns_neither_the_token_nor_the_cookie(scene: Scene) -> None:
    """But a server on another port of the very same address is sent the cookie: ports do not part cookies."""
    driver = scene.browser.driver
    scene.site.received.clear()
    for host in ORIGINS:
        driver.switch_to.window(scene.browser.ui)
        scene.browser.open_page(scene.origin(host))
        assert driver.execute_script("return document.cookie") == ""
        scene.browser.attack(Attack("run", [[]]))
    driver.switch_to.window(scene.browser.ui)
    home = driver.current_url
    driver.execute_script(f"window.location = '{scene.origin('http://127.0.0.1')}/from-the-ui'")
    until(lambda: "from-the-ui" in driver.current_url)
    assert driver.execute_script("return document.referrer") in ("", f"{scene.stack.dagster_url}/")
    driver.get(home)
    assert "token" not in driver.current_url
    for request in scene.site.received:
        assert "token" not in request.get("Referer", "")
        if not request["Host"].startswith("127.0.0.1"):
            assert "Cookie" not in request


@pytest.mark.parametrize("host", ORIGINS)
def test_a_page_gets_nothing_from_the_sandbox(scene: Scene, host: str) -> None:
    before = scene.state()
    env = scene.stack.env()
    ec2, jenkins, mlflow = scene.stack.ec2.url, scene.stack.jenkins.url.rstrip("/"), scene.stack.mlflow.url
    git = scene.stack.git.url.replace("git://", "http://")
    orders: list[dict[str, object]] = [
        {"url": f"{ec2}/", "fields": {**ORDER, "ImageId": env["AMI_ID"]}},
        {"url": f"{ec2}/moto-api/reset", "fields": {}},
        {"url": f"{jenkins}/job/digits/build", "fields": {}},
        {"url": f"{jenkins}/job/digits/1/doDelete", "fields": {}},
        {"url": f"{git}/git-receive-pack", "fields": {"0032git-receive-pack /digits.git": ""}},
    ]
    reads = [f"{ec2}/?Action=DescribeImages", f"{ec2}/moto-api/data.json", f"{jenkins}/api/json", f"{git}/info/refs"]
    reads.append(f"{jenkins}/job/digits/1/consoleText")
    if EVIL in host:  # MLflow itself trusts every page of the computer that it runs on
        orders.append({"url": f"{mlflow}/ajax-api/2.0/mlflow/experiments/create", "fields": {"name": "planted"}})
        reads += [f"{mlflow}/ajax-api/2.0/mlflow/experiments/get?experiment_id=0", mlflow]
    scene.browser.open_page(scene.origin(host))
    assert scene.browser.attack(Attack("attackService", [orders, reads])) == []
    scene.browser.open_page(scene.origin(host))
    attack = Attack("attackService", [orders, reads])
    assert scene.browser.attack(attack, from_nowhere=True) == []
    assert_unharmed(scene, before)


@pytest.mark.parametrize("service", ["ec2", "jenkins", "mlflow"])
def test_no_name_is_made_to_lead_into_the_sandbox(scene: Scene, service: str) -> None:
    before = scene.state()
    url = {"ec2": scene.stack.ec2.url, "jenkins": scene.stack.jenkins.url, "mlflow": scene.stack.mlflow.url}[service]
    rebound = url.rstrip("/").replace("127.0.0.1", REBOUND)
    scene.browser.open_page(rebound)
    order = {"url": f"{rebound}/", "fields": {**ORDER, "ImageId": scene.stack.env()["AMI_ID"]}}
    create = {"url": f"{rebound}/ajax-api/2.0/mlflow/experiments/create", "fields": {"name": "planted"}}
    reads = [f"{rebound}/api/json", f"{rebound}/ajax-api/2.0/mlflow/experiments/get?experiment_id=0"]
    loot = scene.browser.attack(Attack("attackService", [[order, create], reads]))
    refusals = ("403 Invalid Host header", "421 This is the sandbox", "<html><head>")
    assert [entry for entry in loot if not entry[1].startswith(refusals)] == []
    assert_unharmed(scene, before)


class TestTheUiBesideIt:
    """Everything that the operator needs works in the same browser."""

    @pytest.fixture(autouse=True)
    def in_the_ui(self, scene: Scene) -> Iterator[None]:
        scene.browser.driver.switch_to.window(scene.browser.ui)
        scene.browser.console_errors()
        scene.browser.socket_frames()
        yield
        assert scene.browser.console_errors() == []

    @staticmethod
    def visible(scene: Scene, text: str) -> WebElement:
        path = f"//*[contains(text(), '{text}')]"
        return until(lambda: scene.browser.driver.find_elements(By.XPATH, path))[0]

    def test_the_asset_page_shows_the_model(self, scene: Scene) -> None:
        scene.browser.driver.get(f"{scene.stack.dagster_url}/assets/{'/'.join(TRAINED_MODEL)}?view=partitions")
        self.visible(scene, "trained_model")
        self.visible(scene, scene.partition)

    def test_a_sensor_is_switched_off_and_on(self, scene: Scene) -> None:
        driver = scene.browser.driver
        driver.get(f"{scene.stack.dagster_url}/locations/{REPOSITORY}@{LOCATION}/sensors/{names.JANITOR}")
        self.visible(scene, names.JANITOR)

        def status() -> str:
            data = scene.state()["dagster"]["data"]["sensorsOrError"]["results"]
            return next(str(s["sensorState"]["status"]) for s in data if s["name"] == names.JANITOR)

        for expected in ("STOPPED", "RUNNING"):
            switch = until(lambda: driver.find_elements(By.CSS_SELECTOR, "input[type=checkbox]"))[0]
            driver.execute_script("arguments[0].click()", switch)
            until(lambda expected=expected: status() == expected)  # type: ignore[misc]

    def test_a_run_is_launched_and_its_log_followed_live(self, scene: Scene) -> None:
        driver = scene.browser.driver
        launched = scene.browser.graphql(
            f"""mutation {{ launchRun(executionParams: {{ selector: {{{REPOSITORY_SELECTOR},
                jobName: "{ASSET_PAGE_JOB}", assetSelection: [{{path: {json.dumps(TRAINED_MODEL)}}}]}},
                executionMetadata: {{tags: [{{key: "dagster/partition", value: "{scene.partition}"}}]}} }})
                {{ __typename ... on LaunchRunSuccess {{ run {{ id }} }} }} }}"""
        )["data"]["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess"
        driver.get(f"{scene.stack.dagster_url}/runs/{launched['run']['id']}")
        heard: list[str] = []

        def over() -> bool:
            heard.extend(scene.browser.socket_frames())
            return any("RunSuccessEvent" in frame for frame in heard)

        until(over, seconds=180)
        self.visible(scene, "RUN_SUCCESS")

    def test_the_output_of_a_training_is_read(self, scene: Scene) -> None:
        scene.browser.driver.get(
            f"{scene.stack.dagster_url}/runs/{scene.run_id}?logFileKey={scene.log_key[2]}&logType=stdout"
        )
        until(lambda: SECRET in scene.browser.driver.page_source)
