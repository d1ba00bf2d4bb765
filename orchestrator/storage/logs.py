"""Where the output of each step is kept, which dagster.yaml names: in S3, or in DAGSTER_HOME."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeIOType, ComputeLogManager
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from orchestrator.settings.groups import StorageSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import hand_aws_to_boto3

FOLDER = "storage"
"""Where Dagster has it: a DAGSTER_HOME of before shows its logs as it did."""

UPLOAD_SECONDS = 20
"""How far the UI of another machine is behind the output of a step that runs."""

_log = logging.getLogger(f"dagster.{__name__}")


class ComputeLogs(ComputeLogManager, ConfigurableClass):
    """S3 where COMPUTE_LOGS_S3 is set, else files in DAGSTER_HOME."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Nothing: the setting says all."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # Dagster wants any manager
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> ComputeLogManager[dg.DagsterInstance]:
        """The manager that is set.

        Raises:
            SettingsError: COMPUTE_LOGS_S3 is no place in S3.
        """
        place = SettingsSource().read(StorageSettings).logs_s3
        if place is None:
            return HomeLogs()
        hand_aws_to_boto3()
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        return _s3_logs(bucket, prefix)


class HomeLogs(LocalComputeLogManager):
    """Files in the folder of the instance that it comes to belong to; see `SqliteStorage`."""

    def __init__(self) -> None:
        super().__init__(base_dir="")

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Use the folder of this instance."""
        self._base_dir = str(Path(instance.root_directory, FOLDER))
        super().register_instance(instance)


def _s3_logs(bucket: str, prefix: str) -> ComputeLogManager[dg.DagsterInstance]:
    from dagster_aws.s3.compute_log_manager import S3ComputeLogManager  # only here, because it brings boto3

    class S3Logs(S3ComputeLogManager):
        """S3, whose absence costs logs and never a training."""

        def register_instance(self, instance: dg.DagsterInstance) -> None:
            """Keep what is not uploaded yet in the folder of this instance."""
            self._local_manager = LocalComputeLogManager(str(Path(instance.root_directory, FOLDER)))
            super().register_instance(instance)

        def upload_to_cloud_storage(
            self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
        ) -> None:
            """Upload, or say why not."""
            try:
                super().upload_to_cloud_storage(log_key, io_type, partial)
            except Exception as error:  # noqa: BLE001 - whatever S3 says, the step goes on
                _log.warning("Cannot upload the output of %s to s3://%s: %s", "/".join(log_key), bucket, error)

    return S3Logs(bucket=bucket, prefix=prefix, upload_interval=UPLOAD_SECONDS, skip_empty_files=True)
