"""The model registry, against a real MLflow server, and against one that answers with anything."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from orchestrator.errors import MlflowError, MlflowNotFound, MlflowTooLarge
from orchestrator.resources.mlflow import LoggedModel, Mlflow, ModelRegistry, ModelVersion, RegisteredModel, Run
from orchestrator.resources.mlflow.registry import LARGEST_FILE
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import ANSWER_LOST, HUNG_UP, FaultyProxy, ProxyFault
from orchestrator_tests.support.logged_models import FILES, MLMODEL, finished_run, log_model, log_model_2, read_dataset
from orchestrator_tests.support.mlflow_client import client, post


@pytest.fixture(scope="module")
def experiment(mlflow_server: MlflowServer) -> str:
    return mlflow_server.experiment("registry tests")


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MlflowServer) -> Iterator[Mlflow]:
    with client(mlflow_server.url) as connected:
        yield connected


@pytest.fixture
def registry(mlflow: Mlflow) -> ModelRegistry:
    return mlflow.registry


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(mlflow_server.url) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"churn-{uuid4().hex[:8]}"


@pytest.fixture
def run(mlflow: Mlflow, mlflow_server: MlflowServer, experiment: str) -> Run:
    run_id = finished_run(mlflow_server.url, experiment, metrics={"accuracy": 0.9})
    log_model(mlflow_server.url, run_id)
    return mlflow.run(run_id)


def model_of(registry: ModelRegistry, run: Run) -> LoggedModel:
    model = registry.model_of(run)
    assert model is not None
    return model


class TestModelOfARun:
    def test_mlflow_3_has_it_among_the_outputs(self, registry: ModelRegistry, run: Run) -> None:
        model = model_of(registry, run)
        assert (model.id, model.name, model.source) == (run.models[0], "model", f"models:/{run.models[0]}")
        assert set(registry.files_of(model)) == set(FILES)
        assert registry.file_of(model, "MLmodel").decode() == MLMODEL

    def test_mlflow_2_has_it_in_a_tag(
        self, registry: ModelRegistry, mlflow: Mlflow, mlflow_server: MlflowServer, experiment: str
    ) -> None:
        run_id = finished_run(mlflow_server.url, experiment, metrics={})
        log_model_2(mlflow_server.url, run_id, path="models/churn", files={**FILES, "code/tokens.py": "pass"})
        run = mlflow.run(run_id)
        model = model_of(registry, run)
        assert (model.id, model.name) == ("", "models/churn")
        assert model.source == f"{run.artifact_uri}/models/churn"
        assert set(registry.files_of(model)) == {*FILES, "code/tokens.py"}
        assert registry.file_of(model, "MLmodel").decode() == MLMODEL
        registry.require_registered("of-mlflow-2")
        assert registry.register("of-mlflow-2", model, tags={}).run_id == run_id

    def test_of_several_the_last_one_counts(
        self, registry: ModelRegistry, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run
    ) -> None:
        later = log_model(mlflow_server.url, run.id, step=5, name="better")
        log_model(mlflow_server.url, run.id, step=3)
        model = model_of(registry, mlflow.run(run.id))
        assert (model.id, model.name, model.others) == (later, "better", 2)

    def test_a_run_without_one_has_none(
        self, registry: ModelRegistry, mlflow: Mlflow, mlflow_server: MlflowServer, experiment: str
    ) -> None:
        assert registry.model_of(mlflow.run(finished_run(mlflow_server.url, experiment, metrics={}))) is None

    @pytest.mark.parametrize("history", ["", "{", "[" * 100_000, "7", '[{"artifact_path": "../../etc"}, 7, {}]'])
    def test_what_a_run_says_of_models_may_be_anything(self, registry: ModelRegistry, history: str) -> None:
        answer = {"info": {"run_id": "a", "experiment_id": "1", "status": "FINISHED"}}
        tags = [{"key": "mlflow.log-model.history", "value": history}]
        assert registry.model_of(Run.from_json({"run": {**answer, "data": {"tags": tags}}})) is None

    def test_outputs_and_inputs_may_be_anything(self) -> None:
        hostile = {
            "info": {"run_id": "a", "experiment_id": "1", "status": "FINISHED"},
            "outputs": {"model_outputs": [7, None, {"model_id": "m-1", "step": "x"}, {"model_id": "m-2"}]},
            "inputs": {"dataset_inputs": [None, {"dataset": 7}, {"dataset": {"name": "n", "digest": "d"}, "tags": 7}]},
        }
        run = Run.from_json({"run": hostile})
        assert run.models == ("m-2",)
        assert run.datasets == ()

    def test_a_model_that_no_longer_exists_is_named(self, registry: ModelRegistry) -> None:
        answer = {"info": {"run_id": "a", "experiment_id": "1", "status": "FINISHED"}}
        for model in ("m-00000000000000000000000000000000", "../../x"):
            outputs = {"model_outputs": [{"model_id": model}]}
            with pytest.raises(MlflowNotFound):
                registry.model_of(Run.from_json({"run": {**answer, "outputs": outputs}}))

    def test_a_file_that_is_too_large_is_left(
        self, registry: ModelRegistry, mlflow: Mlflow, mlflow_server: MlflowServer, experiment: str
    ) -> None:
        run_id = finished_run(mlflow_server.url, experiment, metrics={})
        log_model(mlflow_server.url, run_id, files={"MLmodel": "x" * (LARGEST_FILE + 1)})
        model = model_of(registry, mlflow.run(run_id))
        with pytest.raises(MlflowTooLarge):
            registry.file_of(model, "MLmodel")
        with pytest.raises(MlflowNotFound):
            registry.file_of(model, "nothing")

    def test_the_digest_of_the_data_is_read(self, mlflow: Mlflow, mlflow_server: MlflowServer, run: Run) -> None:
        read_dataset(mlflow_server.url, run.id, digest="c0ffee")
        [dataset] = mlflow.run(run.id).datasets
        assert (dataset.name, dataset.digest, dataset.context) == ("holdout", "c0ffee", "eval")


class TestVersions:
    def test_a_run_is_registered_once(self, registry: ModelRegistry, run: Run, name: str) -> None:
        assert registry.registered(name) is None
        assert registry.require_registered(name) == RegisteredModel(name=name)
        model = model_of(registry, run)
        version = registry.register(name, model, tags={"jenkins.build": "7"})
        again = registry.register(name, model, tags={"jenkins.build": "8", "more": "x" * 9000})
        assert (version.version, version.run_id, version.created_at is not None) == ("1", run.id, True)
        assert again.version == "1"
        [found] = registry.versions(name)
        assert found.tags == {"jenkins.build": "8", "more": "x" * 5000}
        assert registry.require_registered(name).name == name

    def test_one_that_the_training_registered_itself_counts(
        self, registry: ModelRegistry, mlflow_server: MlflowServer, run: Run, name: str
    ) -> None:
        registry.require_registered(name)
        model_id = run.models[0]
        new = {"name": name, "source": f"models:/{model_id}", "model_id": model_id, "run_id": run.id}
        post(mlflow_server.url, "model-versions/create", **new)
        assert registry.register(name, model_of(registry, run), tags={"a": "1"}).version == "1"
        assert [version.tags for version in registry.versions(name)] == [{"a": "1"}]

    @pytest.mark.parametrize("fault", [ANSWER_LOST, HUNG_UP])
    def test_an_answer_that_is_lost_makes_no_second_version(
        self, registry: ModelRegistry, proxy: FaultyProxy, run: Run, name: str, fault: ProxyFault
    ) -> None:
        registry.require_registered(name)
        with client(proxy.url) as other:
            creating = proxy.faulty(fault, times=1, applies=lambda request: "versions/create" in request.path)
            with creating as hits:
                assert other.registry.register(name, model_of(registry, run), tags={}).version == "1"
        assert hits.count == 1
        assert len(registry.versions(name)) == 1

    def test_an_alias_moves_and_is_read_with_its_model(
        self, registry: ModelRegistry, mlflow: Mlflow, mlflow_server: MlflowServer, experiment: str, name: str
    ) -> None:
        registry.require_registered(name)
        versions = []
        for _ in range(3):
            run_id = finished_run(mlflow_server.url, experiment, metrics={})
            log_model(mlflow_server.url, run_id)
            versions.append(registry.register(name, model_of(registry, mlflow.run(run_id)), tags={}))
        for version in (versions[0], versions[2], versions[1]):
            registry.set_alias(version, "champion")
        registered = registry.registered(name)
        assert registered is not None
        assert registered.aliases == {"champion": "2"}
        assert registered.aliases_of(versions[1]) == ["champion"]
        registry.delete_version(versions[0])
        registry.delete_version(versions[0])
        assert [version.version for version in registry.versions(name)] == ["2", "3"]
        assert (registry.url_of(versions[1]) or "").endswith(f"/#/models/{name}/versions/2")

    def test_two_at_once_may_make_two_and_the_older_counts(self, registry: ModelRegistry, run: Run, name: str) -> None:
        registry.require_registered(name)
        model = model_of(registry, run)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: registry.register(name, model, tags={}), range(4)))
        assert registry.register(name, model, tags={}).version == "1"

    def test_a_run_id_that_cannot_be_one_is_not_searched_for(self, registry: ModelRegistry, name: str) -> None:
        model = LoggedModel(run_id="x' OR name != '", id="", name="m", source="s")
        with pytest.raises(MlflowError, match="cannot be the ID"):
            registry.register(name, model, tags={})

    @pytest.mark.parametrize("version", ["x", "0", "-1", None, [], str(10**30)])
    def test_a_version_that_cannot_be_read_is_left_out(self, version: object) -> None:
        with pytest.raises((TypeError, ValueError)):
            ModelVersion.from_json({"name": "churn", "version": version})
        aliases = [{"alias": "champion", "version": version}, {"alias": "other", "version": 2}]
        read = RegisteredModel.from_json({"registered_model": {"name": "c", "aliases": aliases}})
        assert read.aliases == {"other": "2"}
