"""A target in a defs.yaml: what docs/deployment.md shows is taken, what cannot be meant is named by file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.pipeline.defs_folder import load_defs_folder
from orchestrator.resources.targets import InferenceHost, TargetBlock
from orchestrator.resources.targets.host import SERVE

PAGE = Path(__file__).parents[3] / "docs" / "deployment.md"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7VZ0b1yZ6m0mQmB5kq2H3cWg2mVn0l4p8yq1wq2rZr"
TYPE = "type: orchestrator.pipeline.component.TrainingPipeline\nattributes:\n"


def shown() -> list[dict[str, Any]]:
    """The targets of the page's YAML."""
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]
    found = [block.get("target") or block["attributes"]["deployment"]["target"] for block in blocks]
    for target in found:
        if "host" in target:
            target["host"]["host_key"] = KEY
    return found


def test_the_page_s_targets_are_accepted() -> None:
    targets = [TargetBlock.model_validate(target) for target in shown()]
    assert [target.open().place for target in targets] == [
        "directory /srv/models/churn",
        "backend churn of inference host 10.0.3.7",
    ]
    assert "".join(re.findall(r"serve: \S*/(mlflow .*)", PAGE.read_text())) == SERVE


def test_a_host_s_defaults_are_those_of_the_target() -> None:
    [host] = [TargetBlock.model_validate(target).host for target in shown() if "host" in target]
    assert host is not None
    given = {"address", "user", "host_key", "key_path", "admin_socket", "backend"}
    values = {name: getattr(host, name) for name in given}
    defaults = InferenceHost(**values)
    for name in type(host).model_fields:
        if name not in given | {"serve"}:
            assert getattr(host, name) == getattr(defaults, name), name


@pytest.mark.parametrize(
    ("deployment", "sentence"),
    [
        ("{when: automatic}", "target"),
        ("{when: sometimes, target: {directory: /srv/x}}", "automatic"),
        ("{when: approval, target: {directory: srv}}", "no absolute path"),
        ("{when: approval, target: {directory: /srv, s3: 's3://bucket/x'}}", "a target is one of"),
        ("{when: approval, target: {s3: bucket}}", "no prefix in S3"),
        ("{when: approval, target: {host: {address: h}}}", "host_key"),
        ("{when: approval, target: {sagemaker: {endpoint: churn}}}", "image"),
        ("{when: approval, target: {directory: /srv/x}, retries: 3}", "retries"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, deployment: str, sentence: str) -> None:
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn/defs.yaml").write_text(f"{TYPE}  name: churn\n  deployment: {deployment}\n")
    [broken] = load_defs_folder(tmp_path).broken
    assert sentence in broken.fault
    assert "churn/defs.yaml:4" in broken.fault


def test_a_command_that_lacks_the_model_is_refused() -> None:
    [target] = [target for target in shown() if "host" in target]
    target["host"]["serve"] = "serve --port {port}"
    with pytest.raises(ValueError, match=r"it lacks \{model\}"):
        TargetBlock.model_validate(target)
