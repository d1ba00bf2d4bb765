"""What Dagster holds of each build: its partition, the asset that records it, and which of its records are ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import dagster as dg

from orchestrator import names
from orchestrator.pipeline.builds.hosts import AllowedHosts
from orchestrator.pipeline.builds.signature import Signer
from orchestrator.resources.jenkins import Build

_log = logging.getLogger(__name__)

BUILD, SIGNATURE = "build", "signature"
"""Labels of metadata: the record, as `recorded_build` reads it, and what shows that it is ours."""

PAGE_OF_RECORDS = 100
MOST_PAGES = 10


def builds_partitions(name: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a pipeline, one per build."""
    return dg.DynamicPartitionsDefinition(name=names.builds(name))


def partition_key(build: Build, job: str) -> str:
    """`12`, or `feature/x#12` for a build of a branch.

    Args:
        build: a build of the job, or of one of its branches.
        job: full name of the job that the pipeline watches.
    """
    if build.job == job:
        return str(build.number)
    return f"{unquote(build.job.removeprefix(f'{job}/'))}#{build.number}"


def jenkins_build_key(name: str) -> dg.AssetKey:
    """The external asset whose materialisations are the builds."""
    return dg.AssetKey([name, names.JENKINS_BUILD])


def jenkins_build_spec(name: str) -> dg.AssetSpec:
    """The external asset `<name>/jenkins_build`; the sensor reports its materialisations."""
    return dg.AssetSpec(
        jenkins_build_key(name),
        description="A successful Jenkins build, with the commit that it tested. Reported by the sensor.",
        kinds={"jenkins"},
        group_name=name,
        partitions_def=builds_partitions(name),
    )


def materialization(
    signer: Signer, key: str, build: Build, *, hosts: AllowedHosts | None = None
) -> dg.AssetMaterialization:
    """What the sensor reports of a build, for `recorded_build` to read.

    Args:
        signer: of the pipeline.
        key: the build's partition key.
        build: the build, as Jenkins told of it.
        hosts: the Git hosts that are allowed now, for people.
    """
    record = build.to_json()
    metadata: dict[str, dg.MetadataValue | str | None] = {
        "url": dg.MetadataValue.url(build.url),
        "commit": build.commit,
        "branch": build.branch,
        "repository": build.repository,
        "result": build.result,
        "timestamp": dg.MetadataValue.timestamp(build.timestamp / 1000),
        "duration_seconds": dg.MetadataValue.float(build.duration_ms / 1000),
        "allowed Git hosts": str(hosts) if hosts else None,
        BUILD: dg.MetadataValue.json(record),
        SIGNATURE: dg.MetadataValue.json(signer.sign(key, record)),
    }
    known = {label: value for label, value in metadata.items() if value is not None}
    return dg.AssetMaterialization(jenkins_build_key(signer.pipeline), partition=key, metadata=known)


@dataclass(frozen=True)
class RecordSearch:
    """What the event log holds of one partition.

    Attributes:
        build: as our sensor recorded it last; None: it did not.
        refused: how many records were none of our sensor's.
    """

    build: Build | None
    refused: int = 0

    def __str__(self) -> str:
        if not self.refused:
            return "none was recorded"
        records = "1 record was" if self.refused == 1 else f"{self.refused} records were"
        return (
            f"{records} refused, because this installation's sensor did not sign them (an earlier version wrote them, "
            "or somebody else)"
        )


def search_records(instance: dg.DagsterInstance, signer: Signer, partition: str) -> RecordSearch:
    """Look for what the sensor recorded of a partition, past whatever others reported of it.

    So many of the newest events are read, and as many of the oldest, that a flood of forged ones hides nothing.

    Args:
        instance: the Dagster instance with the event log.
        signer: of the pipeline.
        partition: the build's partition key.
    """
    genuine: dict[int, Build] = {}
    refused: set[int] = set()
    for oldest_first in (False, True):
        whole = False
        for record in _events(instance, signer.pipeline, partition, oldest_first=oldest_first):
            if record is None:
                whole = True
                break
            moment, build = _read(record, signer, partition)
            if build is not None:
                genuine[moment] = build
            elif moment:
                refused.add(record.storage_id)
        if whole:
            break
    return RecordSearch(genuine[max(genuine)] if genuine else None, len(refused))


def _events(
    instance: dg.DagsterInstance, name: str, partition: str, *, oldest_first: bool
) -> Iterator[dg.EventLogRecord | None]:
    """Materialisations of a partition, and None after the last one that there is."""
    records_filter = dg.AssetRecordsFilter(jenkins_build_key(name), asset_partitions=[partition])
    cursor = None
    for _ in range(MOST_PAGES):
        page = instance.fetch_materializations(
            records_filter, limit=PAGE_OF_RECORDS, cursor=cursor, ascending=oldest_first
        )
        yield from page.records
        if not page.has_more:
            yield None
            return
        cursor = page.cursor


def _read(record: dg.EventLogRecord, signer: Signer, partition: str) -> tuple[int, Build | None]:
    """When a record was signed, and its build; 1 and None: it is no record of ours, 0 and None: it is no record."""
    event = record.asset_materialization
    metadata = event.metadata if event else {}
    build, signature = metadata.get(BUILD), metadata.get(SIGNATURE)
    if build is None:  # reported by hand in the UI
        return 0, None
    if not isinstance(build, dg.JsonMetadataValue) or not isinstance(signature, dg.JsonMetadataValue):
        return 1, None
    moment = signer.recorded_at(partition, build.value, signature.value)
    if moment is None:
        return 1, None
    try:
        return moment, Build.from_json(build.value)
    except ValueError as error:  # of another version of ours
        _log.warning(f"Left out a record of build {partition} that cannot be read: {str(error)[:200]}")
        return 1, None


def recorded_build(instance: dg.DagsterInstance, name: str, partition: str) -> Build | None:
    """The build that the sensor recorded last for a partition; None when it recorded none.

    Args:
        instance: the Dagster instance with the event log.
        name: the pipeline.
        partition: the build's partition key.
    """
    return search_records(instance, Signer.of(instance, name), partition).build
