"""The dashboard and the alert rules of deploy/: Prometheus understands them, and /metrics has what they ask for."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.operate.web.metrics import families
from orchestrator_tests.support.dockerfile import PROJECT

ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = PROJECT / "deploy" / "grafana" / "dashboard.json"

NAME = re.compile(r"\borchestrator_[a-z_]+\b")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Of panels, with values for Grafana's variables."""
    texts = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [text.replace("$pipeline", ".*") for text in texts]


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *expressions()])
def test_each_expression_asks_for_what_there_is(expression: str) -> None:
    asked = set(NAME.findall(expression))
    assert asked
    assert asked <= families.offered_names()
    assert "$" not in expression


def test_there_is_a_rule_for_each_thing_that_costs_money_or_models() -> None:
    assert len(rules()) >= 5
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    assert all(rule["labels"]["severity"] in ("critical", "warning") for rule in rules())
    assert all(rule["annotations"]["summary"] for rule in rules())


def test_the_dashboard_shows_every_metric_and_no_two_panels_lie_on_each_other() -> None:
    shown = set(NAME.findall(" ".join(expressions())))
    shown_families = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    offered = {re.sub("_(bucket|sum|count)$", "", name) for name in families.offered_names()}
    assert shown_families == offered
    cells = [
        (x, y)
        for panel in panels()
        for position in [panel["gridPos"]]
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.services
def test_promtool_understands_every_expression(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    dashboard = tmp_path / "dashboard.yaml"
    dashboard.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS), str(dashboard)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"SUCCESS: {len(rules())} rules found" in checked.stdout
    assert f"SUCCESS: {len(recorded)} rules found" in checked.stdout


SERIES = {
    "OrchestratorNotReady": ("orchestrator_ready", "0x30"),
    "OrchestratorSourceAway": ('orchestrator_source_up{source="ec2"}', "0x30"),
    "OrchestratorInstanceOverdue": ('orchestrator_instances_overdue{pipeline="churn"}', "1x30"),
    "OrchestratorInstancesWithoutRuns": ('orchestrator_instances{pipeline="churn",state="running"}', "1x30"),
    "OrchestratorQueueStands": ('orchestrator_oldest_queued_seconds{pipeline="churn"}', "4000+60x30"),
    "OrchestratorSensorLags": ('orchestrator_sensor_lag_builds{pipeline="churn"}', "51x60"),
    "OrchestratorChampionWaits": ('orchestrator_champion_waits{pipeline="churn"}', "1x30"),
    "OrchestratorRunsFail": ('orchestrator_runs_ended_total{pipeline="churn",status="FAILURE"}', "0+1x30"),
    "OrchestratorLeasesExpire": ('orchestrator_leases_expiring{pipeline="churn"}', "1x30"),
    "OrchestratorJanitorFails": (
        'orchestrator_janitor_actions_total{action="terminate_instance",result="failed"}', "0+1x30"
    ),
}  # fmt: skip
"""Alert → a series that sets it off alone."""


@pytest.mark.services
@pytest.mark.parametrize("alert", [*SERIES, "OrchestratorAway", "OrchestratorBudgetNearlyUsed"])
def test_each_alert_goes_off_and_is_silent_else(alert: str, tmp_path: Path) -> None:
    series = [{"series": name, "values": values} for name, values in [SERIES[alert]]] if alert in SERIES else []
    if alert == "OrchestratorBudgetNearlyUsed":
        series = [
            {"series": 'orchestrator_budget_used_usd{period="day"}', "values": "19x60"},
            {"series": 'orchestrator_budget_limit_usd{period="day"}', "values": "20x60"},
        ]
    well = [
        {"series": "orchestrator_ready", "values": "1x60"},
        {"series": 'orchestrator_source_up{source="ec2"}', "values": "1x60"},
        {"series": 'orchestrator_instances{pipeline="churn",state="running"}', "values": "1x60"},
        {"series": 'orchestrator_runs{pipeline="churn",status="STARTED"}', "values": "1x60"},
        {"series": 'orchestrator_oldest_queued_seconds{pipeline="churn"}', "values": "60x60"},
        {"series": 'orchestrator_champion_waits{pipeline="churn"}', "values": "0x60"},
        {"series": 'orchestrator_runs_ended_total{pipeline="churn",status="SUCCESS"}', "values": "0+1x60"},
        {"series": 'orchestrator_janitor_actions_total{action="terminate_instance",result="done"}', "values": "0+1x60"},
        {"series": 'orchestrator_budget_used_usd{period="day"}', "values": "10x60"},
        {"series": 'orchestrator_budget_limit_usd{period="day"}', "values": "20x60"},
    ]

    def test(input_series: list[dict[str, str]], *alerts: str) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": input_series,
            "alert_rule_test": [],
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": "45m" if name == "OrchestratorSensorLags" else "20m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name in alerts else [],
                }
                for name in [alert]
            ],
        }

    checks = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test(series, alert), test(well)]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(checks))
    checked = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_page_for_operators_explains_every_metric_and_every_alert() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    explained = set(re.findall(r"^\| `(orchestrator_[a-z_]+)` \|", page, re.MULTILINE))
    assert explained == {re.sub("_(bucket|sum|count)$", "", name) for name in families.offered_names()}
    assert set(re.findall(r"^\| (Orchestrator\w+) \|", page, re.MULTILINE)) == {rule["alert"] for rule in rules()}
