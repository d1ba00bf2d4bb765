"""What an image holds, layer by layer, deleted files included."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from typing import IO

from orchestrator_sandbox.docker_engine import CLIENT, DockerEngine

CHUNK = 1 << 20


def where_found(engine: DockerEngine, image: str, *markers: bytes) -> list[str]:
    """Names of all files of all layers, and of the image's own description, whose name or content holds a marker."""
    found = []
    command = [CLIENT, "save", image]
    with subprocess.Popen(command, env=engine.environment, stdout=subprocess.PIPE) as save:
        assert save.stdout
        with tarfile.open(fileobj=save.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if member.name.endswith(".tar"):
                    found += [f"{member.name}: {name}" for name in _in_layer(content, markers)]
                elif _holds(content, markers):
                    found.append(member.name)
    assert save.returncode == 0
    return found


def _in_layer(layer: IO[bytes], markers: tuple[bytes, ...]) -> Iterator[str]:
    with tarfile.open(fileobj=layer, mode="r|") as files:
        for file in files:
            content = files.extractfile(file) if file.isfile() else None
            in_name = any(marker in file.name.encode(errors="surrogateescape") for marker in markers)
            if in_name or (content is not None and _holds(content, markers)):
                yield file.name


def _holds(content: IO[bytes], markers: tuple[bytes, ...]) -> bool:
    end = b""
    longest = max(map(len, markers))
    while chunk := content.read(CHUNK):
        if any(marker in end + chunk for marker in markers):
            return True
        end = chunk[-longest:]
    return False
