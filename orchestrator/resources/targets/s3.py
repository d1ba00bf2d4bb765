"""A prefix in S3 as target: the pointer `current.json` names the release in use, and is written last, on a condition.

The condition (If-Match, If-None-Match) is that nobody has written it since we read it, so that of two deployments at
once one is refused: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import boto3
from botocore.exceptions import ClientError

from orchestrator.errors import TargetHeld, TargetUnavailable
from orchestrator.resources.targets.aws import CONFIG, error_code, explained
from orchestrator.resources.targets.release import (
    KEPT_RELEASES,
    LARGEST_RECORD,
    RECORD,
    RELEASES,
    ModelFolder,
    Release,
    require_holder,
)

POINTER = "current.json"
"""The record of the release in use, with `path`: where its files are below the prefix."""

_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ABSENT = ("NoSuchKey", "404")
_MOST_DELETED = 1000


class S3Target:
    """A prefix in an S3 bucket.

        s3://bucket/churn/current.json       {"version": "7", "path": "releases/7", ...}
        s3://bucket/churn/releases/7/        MLmodel, ..., deployed.json

    Args:
        bucket: its name.
        prefix: without a slash at either end; empty: the whole bucket.
        keep: how many releases are kept.
    """

    def __init__(self, bucket: str, prefix: str, *, keep: int = KEPT_RELEASES) -> None:
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._keep = max(2, keep)

    @property
    def place(self) -> str:
        """Its address."""
        return f"s3://{self._bucket}/{self._root}".rstrip("/")

    @cached_property
    def _client(self) -> Any:
        return boto3.session.Session().client("s3", config=CONFIG)

    def state(self) -> Release | None:
        """What the pointer names; see `Target`."""
        with explained(self.place):
            return self._pointer()[0]

    def lost(self) -> Release | None:
        """Nothing: objects stay; see `Target`."""
        return None

    def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
        """Upload the files, then write the pointer; see `Target`."""
        with explained(self.place):
            before, old, tag = self._pointer()
            require_holder(before, release.holder, place=self.place, take_over=take_over)
            known = before is not None and before.holder == release.holder and release.is_same_model(before)
            if known and self._is_whole(old, model):
                return before
            folder = self._free_folder(release.version, in_use=old)
            record = release.now()
            self._upload(folder, model, record)
            self._write_pointer({**asdict(record), "path": folder}, tag)
            self._prune({folder, old})
            return before

    def _pointer(self) -> tuple[Release | None, str, str]:
        """The record, the folder that it names, and the tag of the object."""
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=f"{self._root}{POINTER}")
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return None, "", ""
            raise
        text = found["Body"].read(LARGEST_RECORD)
        release = Release.parse(text, place=self.place)
        folder = json.loads(text).get("path")
        if not isinstance(folder, str) or not re.fullmatch(rf"{RELEASES}/[A-Za-z0-9._-]+", folder):
            raise TargetHeld(f"{self.place}/{POINTER} names no release of the orchestrator's: name an empty prefix")
        return release, folder, str(found["ETag"])

    def _is_whole(self, folder: str, model: ModelFolder) -> bool:
        """S3 has compared the digests when the files came."""
        sizes = {key.removeprefix(f"{self._root}{folder}/"): size for key, size, _ in self._objects(f"{folder}/")}
        return all(sizes.get(file.path) == file.size for file in model.files)

    def _free_folder(self, version: str, *, in_use: str) -> str:
        names = [version, *(f"{version}_{number}" for number in range(2, 1000))]
        return next(folder for name in names if (folder := f"{RELEASES}/{name}") != in_use)

    def _upload(self, folder: str, model: ModelFolder, record: Release) -> None:
        known = {f"{self._root}{folder}/{file.path}" for file in model.files}
        self._delete(key for key, *_ in self._objects(f"{folder}/") if key not in known)
        for file in model.files:
            self._client.upload_file(
                str(model.folder / file.path),
                self._bucket,
                f"{self._root}{folder}/{file.path}",
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": file.sha256}},
            )
        self._put(f"{folder}/{RECORD}", record.dump())

    def _write_pointer(self, pointer: dict[str, str], tag: str) -> None:
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        try:
            self._put(POINTER, f"{json.dumps(pointer, indent=2)}\n", **condition)
        except ClientError as error:
            found = self._pointer()[0]
            if found is not None and asdict(found) == {key: value for key, value in pointer.items() if key != "path"}:
                return  # the first of several tries has arrived
            if error_code(error) in _TAKEN:
                raise TargetUnavailable(f"another deployment to {self.place} was faster") from error
            raise

    def _put(self, key: str, text: str, **condition: str) -> None:
        self._client.put_object(
            Bucket=self._bucket,
            Key=f"{self._root}{key}",
            Body=text.encode(),
            ContentType="application/json",
            **condition,
        )

    def _objects(self, below: str) -> Iterator[tuple[str, int, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._root}{below}"
        )
        for page in pages:
            for found in page.get("Contents", []):
                yield str(found["Key"]), int(found["Size"]), found["LastModified"]

    def _prune(self, folders: set[str]) -> None:
        """Remove the oldest releases but these."""
        start = f"{self._root}{RELEASES}/"
        last: dict[str, Any] = {}
        for key, _, at in self._objects(f"{RELEASES}/"):
            name = key.removeprefix(start).partition("/")[0]
            last[name] = max(at, last.get(name, at))
        others = sorted((at, name) for name, at in last.items() if f"{RELEASES}/{name}" not in folders)
        room = max(0, self._keep - len(folders - {""}))
        for _, name in others[: max(0, len(others) - room)]:
            self._delete(key for key, *_ in self._objects(f"{RELEASES}/{name}/"))

    def _delete(self, keys: Iterator[str]) -> None:
        found = list(keys)
        for first in range(0, len(found), _MOST_DELETED):
            batch = [{"Key": key} for key in found[first : first + _MOST_DELETED]]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
