"""What Dagster shows of a trained model."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.pipeline.training.curves import (
    MAX_PANELS,
    Curves,
    as_markdown,
    curve_metrics,
    learning_curves,
    panels,
)
from orchestrator.pipeline.training.finished import FinishedTraining, Usage
from orchestrator.pipeline.training.metadata import MAX_PLOTTED, MAX_ROWS, training_metadata
from orchestrator.resources.jenkins import commit_url
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow.answers import MetricPoint, Run
from orchestrator_tests.support.dagster_internals import deserialize_value, serialize_value

SHA = "0123456789abcdef0123456789abcdef01234567"
BUILD = Build(
    number=12,
    timestamp=1_700_000_000_000,
    result="SUCCESS",
    job="team/churn",
    duration_ms=1000,
    url="https://jenkins.example.com/job/team/job/churn/12/",
    commit=SHA,
    branch="main",
    repository="git@github.com:acme/churn.git",
)


def points(values: Sequence[float]) -> list[MetricPoint]:
    return [MetricPoint(value=value, step=step, timestamp=step) for step, value in enumerate(values)]


def trained(metrics: dict[str, float], params: dict[str, str] | None = None, step: int = 0) -> Run:
    return Run(
        id="a1b2",
        name="churn 12",
        experiment_id="3",
        status="FINISHED",
        start_time=datetime.now(UTC),
        end_time=datetime.now(UTC),
        params=params or {},
        latest={key: MetricPoint(value, step, 0) for key, value in metrics.items()},
        tags={},
        active=True,
    )


def metadata(
    run: Run, *, build: Build = BUILD, usage: Usage | None = None, histories: Curves | None = None
) -> dict[str, dg.MetadataValue]:
    page = "http://mlflow.example.com/#/experiments/3/runs/a1b2"
    finished = FinishedTraining(run=run, url=page, histories=histories or {}, usage=usage, root=run)
    return training_metadata(finished, build)


def table(value: dg.MetadataValue) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


class TestMetadata:
    def test_each_metric_is_a_number_that_dagster_plots(self) -> None:
        shown = metadata(trained({"accuracy": 0.9, "val/loss": 1}))
        assert shown["metrics/accuracy"] == dg.MetadataValue.float(0.9)
        assert shown["metrics/val/loss"] == dg.MetadataValue.float(1.0)

    def test_links_lead_to_run_build_and_commit(self) -> None:
        shown = metadata(trained({}))
        assert shown["MLflow run"] == dg.MetadataValue.url("http://mlflow.example.com/#/experiments/3/runs/a1b2")
        assert shown["Jenkins build"] == dg.MetadataValue.url(BUILD.url)
        assert shown["commit"] == dg.MetadataValue.url(f"https://github.com/acme/churn/commit/{SHA}")
        assert shown["MLflow run ID"] == dg.MetadataValue.text("a1b2")

    def test_machine_time_and_cost_are_told(self) -> None:
        usage = Usage(instance_id="i-1", instance_type="t3.medium", market="spot", minutes=12.5, usd=0.01)
        shown = metadata(trained({}), usage=usage)
        assert {key: shown[key].value for key in ("instance", "instance type", "market")} == {
            "instance": "i-1",
            "instance type": "t3.medium",
            "market": "spot",
        }
        assert shown["training minutes"] == dg.MetadataValue.float(12.5)
        assert shown["cost in USD"] == dg.MetadataValue.float(0.01)

    def test_what_is_unknown_is_left_out(self) -> None:
        build = Build(number=1, timestamp=1, result="SUCCESS", job="churn", duration_ms=1, url="http://j/1/")
        assert set(metadata(trained({}), build=build)) == {"MLflow run", "MLflow run ID", "Jenkins build"}

    def test_a_commit_without_a_known_forge_is_text(self) -> None:
        build = Build(
            number=1, timestamp=1, result="SUCCESS", job="churn", duration_ms=1, url="http://j/1/", commit=SHA
        )
        assert metadata(trained({}), build=build)["commit"] == dg.MetadataValue.text(SHA)

    @pytest.mark.parametrize(
        ("tags", "code"),
        [
            ({"orchestrator.build_image": "false", "mlflow.project.env": "docker"}, "unknown"),
            (
                {
                    "orchestrator.build_image": "false",
                    "mlflow.project.env": "docker",
                    "mlflow.docker.image.uri": "acme/churn:3",
                },
                "acme/churn:3",
            ),
            ({"orchestrator.build_image": "false", "mlflow.project.env": "conda"}, None),
            ({"orchestrator.build_image": "false"}, None),
            ({"mlflow.project.env": "docker", "mlflow.docker.image.uri": "churn:0123456"}, None),
        ],
    )
    def test_only_an_image_that_ran_as_it_is_takes_the_commit_s_place(
        self, tags: dict[str, str], code: str | None
    ) -> None:
        shown = metadata(dataclasses.replace(trained({}), tags=tags))
        assert ("code" in shown, "commit" in shown) == (code is not None, code is None)
        if code:
            sentence = f"code of image {code} (MLPROJECT_BUILD_IMAGE is false), not of commit {SHA}"
            assert shown["code"] == dg.MetadataValue.text(sentence)

    def test_parameters_and_metrics_are_tables(self) -> None:
        shown = metadata(trained({"b": 2.0, "a": 1.0}, {"alpha": "0.5", "text": "x" * 2000}, step=7))
        assert table(shown["metrics"])[0] == {"metric": "a", "value": 1.0, "step": 7}
        alpha, text = table(shown["parameters"])
        assert alpha == {"parameter": "alpha", "value": "0.5"}
        assert len(text["value"]) < 600

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_metric_that_json_has_no_number_for_is_text(self, value: float) -> None:
        shown = metadata(trained({"loss": value}))
        assert shown["metrics/loss"] == dg.MetadataValue.text(str(value))
        assert table(shown["metrics"])[0]["value"] == str(value)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(1.7976931348623157e308, "inf"), (-1.7976931348623157e308, "-inf"), (1.79e308, "inf"), (math.inf, "inf")],
    )
    def test_infinity_as_mlflow_keeps_it_is_text_everywhere(self, value: float, text: str) -> None:
        # One diverged build would flatten the plot over all of them: FastTrackML#489, mlflow#22826.
        other = dataclasses.replace(trained({"loss": value, "acc": 0.5}), id="b", name="fold")
        root = trained({"loss": value, "acc": 0.25})
        shown = training_metadata(
            FinishedTraining(run=root, url="http://m/", histories={}, usage=None, root=root, others=[other]), BUILD
        )
        assert shown["metrics/loss"] == dg.MetadataValue.text(text)
        assert [row["value"] for row in table(shown["metrics"])] == [0.25, text]
        assert [row["metrics"] for row in table(shown["runs"])] == [f"acc 0.25, loss {text}", f"acc 0.5, loss {text}"]
        assert "308" not in serialize_value(dg.AssetMaterialization("x", metadata=shown))

    @pytest.mark.parametrize("value", [1e299, -1e299, 0.0, 5e-324])
    def test_a_number_that_is_only_large_or_small_stays_one(self, value: float) -> None:
        assert metadata(trained({"loss": value}))["metrics/loss"] == dg.MetadataValue.float(value)

    def test_thousands_of_metrics_and_parameters_do_not_explode_the_event(self) -> None:
        names = [f"{index:05}" for index in range(5000)]
        shown = metadata(
            trained({f"system/{name}": 1.0 for name in names} | {"z": 1.0}, dict.fromkeys(names, "v" * 5000))
        )
        assert sum(key.startswith("metrics/") for key in shown) == MAX_PLOTTED
        assert "metrics/z" in shown
        rows = table(shown["parameters"])
        assert len(rows) == MAX_ROWS + 1
        assert rows[-1] == {"parameter": "… and 4800 more, see MLflow", "value": None}
        assert len(serialize_value(dg.AssetMaterialization("x", metadata=shown))) < 250_000

    @settings(deadline=None)
    @given(
        metrics=st.dictionaries(st.text(max_size=20), st.floats(), max_size=5),
        params=st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5),
    )
    def test_any_run_can_be_stored_by_dagster_as_strict_json(
        self, metrics: dict[str, float], params: dict[str, str]
    ) -> None:
        event = dg.AssetMaterialization("churn", metadata=metadata(trained(metrics, params)))
        stored = serialize_value(event)
        json.loads(stored, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        assert deserialize_value(stored, dg.AssetMaterialization) == event


class TestCommitUrl:
    @pytest.mark.parametrize(
        ("repository", "page"),
        [
            ("https://github.com/acme/churn.git", "https://github.com/acme/churn/commit/"),
            ("https://bot:s3cret@github.com/acme/churn", "https://github.com/acme/churn/commit/"),
            ("git@github.com:acme/churn.git", "https://github.com/acme/churn/commit/"),
            ("git@github.com:/acme/churn.git/", "https://github.com/acme/churn/commit/"),
            ("ssh://git@github.com:22/acme/churn.git", "https://github.com/acme/churn/commit/"),
            ("git@gitlab.com:acme/team/churn.git", "https://gitlab.com/acme/team/churn/-/commit/"),
            ("https://ann@bitbucket.org/acme/churn.git", "https://bitbucket.org/acme/churn/commits/"),
        ],
    )
    def test_known_forges_have_a_page_for_it(self, repository: str, page: str) -> None:
        assert commit_url(repository, SHA) == page + SHA

    @pytest.mark.parametrize(
        "repository",
        [
            "git://127.0.0.1:9418/churn.git",
            "/srv/git/churn.git",
            "https://notgithub.com/acme/churn",
            "https://github.com.evil.example/acme/churn",
            "https://code.gitlab.example.com/a/b",
            "https://bitbucket.org",
            "https://[github.com/acme/churn",
            "",
        ],
    )
    def test_others_have_none(self, repository: str) -> None:
        assert commit_url(repository, SHA) is None

    def test_what_is_no_commit_has_none(self) -> None:
        assert commit_url("https://github.com/acme/churn", "main?x=") is None


class TestLearningCurves:
    def test_they_are_a_small_png_shown_in_place(self) -> None:
        wave = [math.exp(-step / 900) + math.sin(step * step) / 20 for step in range(3000)]
        histories = {f"{part}_loss{index}": points(wave) for index in range(9) for part in ("train", "val")}
        shown = metadata(trained({}), histories=histories)["learning curves"]
        assert isinstance(shown, dg.MarkdownMetadataValue)
        assert shown.md_str is not None
        assert len(shown.md_str) < 100_000
        head, _, data = shown.md_str.removesuffix(")").partition(",")
        assert head == "![learning curves](data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > picture.height > 300

    def test_it_can_be_read_on_a_dark_page_too(self) -> None:
        drawn = learning_curves({"loss": points([3, 2, 1])})
        assert drawn is not None
        with Image.open(io.BytesIO(drawn)) as picture:
            assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)

    def test_without_steps_there_is_no_picture(self) -> None:
        assert learning_curves({}) is None
        assert (
            learning_curves({"accuracy": points([0.9]), "again": [MetricPoint(1, 0, 0), MetricPoint(2, 0, 1)]}) is None
        )
        assert "learning curves" not in metadata(trained({"accuracy": 0.9}), histories={"accuracy": points([0.9])})

    def test_values_that_cannot_be_drawn_are_left_out(self) -> None:
        assert learning_curves({"loss": points([math.nan, math.inf, 1.79e308, 1])}) is None
        assert learning_curves({"loss": points([math.nan, 2, math.inf, 1])}) is not None

    @given(
        st.dictionaries(
            st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=60),
            st.just(points([1, 2])),
            max_size=2,
        )
    )
    @settings(max_examples=8, deadline=None)
    def test_any_name_can_be_drawn(self, histories: dict[str, list[MetricPoint]]) -> None:
        assert (learning_curves(histories) is None) == (not histories)

    def test_markdown_holds_the_picture(self) -> None:
        assert as_markdown(b"png") == "![learning curves](data:image/png;base64,cG5n)"


class TestPanels:
    def test_training_and_validation_share_one(self) -> None:
        keys = ["train_loss", "val_loss", "acc", "val_acc", "lr", "validation_0-rmse", "validation_1-rmse"]
        assert panels(keys) == {
            "acc": ["acc", "val_acc"],
            "loss": ["train_loss", "val_loss"],
            "rmse": ["validation_0-rmse", "validation_1-rmse"],
            "lr": ["lr"],
        }

    def test_a_lone_metric_keeps_its_name(self) -> None:
        assert panels(["val_loss", "train", "a/b"]) == {"a/b": ["a/b"], "val_loss": ["val_loss"], "train": ["train"]}

    def test_there_are_no_more_than_can_be_read(self) -> None:
        assert len(panels([f"m{index}" for index in range(100)])) == MAX_PANELS

    def test_only_histories_that_can_be_shown_are_worth_fetching(self) -> None:
        stepped = trained({"val_loss": 1, "train_loss": 1, "system/cpu": 1}, step=9)
        assert curve_metrics(stepped) == ["train_loss", "val_loss"]
        assert curve_metrics(trained({"accuracy": 1})) == []
        assert len(curve_metrics(trained({f"m{index}": 1.0 for index in range(1000)}, step=3))) == MAX_PANELS
