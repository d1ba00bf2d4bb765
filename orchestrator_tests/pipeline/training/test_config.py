"""What the launchpad takes: text is text, whoever writes it."""

from __future__ import annotations

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.pipeline.training.asset import trained_model
from orchestrator.pipeline.training.config import launchpad_schema
from orchestrator.settings import SettingsSource

RESOURCES = [value for key, value in vars(names.ResourceKey).items() if key.isupper()]
NODE = "training__trained_model"
SECRET = "the-token-of-jenkins"


@pytest.mark.parametrize(
    "config",
    [
        {"parameters": {"note": {"env": "JENKINS_TOKEN"}}},
        {"version": {"env": "JENKINS_TOKEN"}},
        {"entry_point": {"env": "JENKINS_TOKEN"}},
        {"instance_type": {"env": "JENKINS_TOKEN"}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_the_launchpad_names_no_variable_of_the_orchestrator(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`{env: NAME}` would hand any secret of ours to the training, to MLflow, and to whoever reads these."""
    monkeypatch.setenv("JENKINS_TOKEN", SECRET)
    whole = launchable()
    for job in (whole, whole.get_subset(op_selection=[f"{NODE}.resolve"])):
        for given in ({"config": config}, {"ops": {"resolve": {"config": config}}}):
            with pytest.raises(dg.DagsterInvalidConfigError):
                dg.validate_run_config(job, {"ops": {NODE: given}})


def test_the_launchpad_takes_text_as_it_stands() -> None:
    config = {
        "entry_point": "main",
        "parameters": {"note": "${JENKINS_TOKEN} env:JENKINS_TOKEN"},
        "version": None,
        "instance_type": "g5.xlarge",
        "max_minutes": 7.5,
    }
    for given in (config, {}, dict.fromkeys(config)):
        assert dg.validate_run_config(launchable(), {"ops": {NODE: {"config": given}}})
    assert set(config) == set(launchpad_schema())


def launchable() -> dg.JobDefinition:
    definitions = dg.Definitions(
        assets=[trained_model("training", SettingsSource())], resources=dict.fromkeys(RESOURCES)
    )
    return definitions.resolve_implicit_global_asset_job_def()
