"""Dagster's daemon, as far as the sensor of builds sees it; for tests of builds."""

from __future__ import annotations

from dataclasses import dataclass, field

import dagster as dg

from orchestrator import names
from orchestrator.pipeline.builds import builds_partitions, jenkins_build_spec, jenkins_sensor
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.resources.jenkins import JenkinsResource
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.dagster_internals import SensorExecutionData


@dataclass
class Daemon:
    """Evaluates the sensor and stores its result, in the order in which Dagster's daemon does."""

    instance: dg.DagsterInstance
    environment: dict[str, str]
    limits: Limits = field(default_factory=Limits)
    cursor: str | None = None
    seen_run_keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        @dg.asset(key=["churn", "trained_model"], partitions_def=builds_partitions("churn"))
        def trained_model() -> None: ...

        job = dg.define_asset_job("churn_training", selection=[trained_model])
        settings = SettingsSource(pipeline="churn", lookup=self.environment.get)
        self.sensor = jenkins_sensor("churn", settings, job, limits=self.limits)
        self.defs = dg.Definitions(
            assets=[jenkins_build_spec("churn"), trained_model],
            jobs=[job],
            sensors=[self.sensor],
            resources={names.ResourceKey.JENKINS: JenkinsResource()},
        )

    def evaluate(self) -> SensorExecutionData:
        repository = self.defs.get_repository_def()
        with dg.build_sensor_context(
            self.instance,
            cursor=self.cursor,
            repository_def=repository,
            instance_ref=self.instance.get_ref(),
            sensor_name="churn_jenkins_sensor",
            resources={names.ResourceKey.JENKINS: JenkinsResource()},
        ) as context:
            return repository.get_sensor_def("churn_jenkins_sensor").evaluate_tick(context)

    def tick(self, *, dies: bool = False) -> list[str]:
        """One tick; partitions of the runs that Dagster would launch, which it does once per run key."""
        data = self.evaluate()
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        fresh = [request for request in data.run_requests or [] if request.run_key not in self.seen_run_keys]
        self.seen_run_keys |= {request.run_key for request in fresh if request.run_key}
        if not dies:
            self.cursor = data.cursor
        return [str(request.partition_key) for request in fresh]

    def events(self) -> int:
        key = dg.AssetKey(["churn", "jenkins_build"])
        return len(self.instance.fetch_materializations(key, limit=1000).records)
