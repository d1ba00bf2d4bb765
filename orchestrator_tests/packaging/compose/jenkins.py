"""The sandbox's Jenkins, reachable from other containers: it answers on loopback only, so a relay stands before it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator_sandbox.jenkins.home import JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer

HOME = Path("/tmp/jenkins")
PORT = 8080


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replaced: bytes = b"", by: bytes = b""
) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk.replace(replaced, by) if replaced else chunk)
        await writer.drain()
    writer.close()


async def _relay(to: int) -> None:
    host = f"Host: 127.0.0.1:{to}".encode()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(
            _pass_on(reader, back, b"Host: jenkins:8080", host), _pass_on(there, writer), return_exceptions=True
        )

    server = await asyncio.start_server(connected, "0.0.0.0", PORT)
    await server.serve_forever()


if __name__ == "__main__":
    HOME.mkdir(mode=0o700, exist_ok=True)
    (HOME / "token").write_text(Path("/run/secrets/JENKINS_TOKEN").read_text())
    with JenkinsServer(HOME) as jenkins:
        jenkins.create_job("digits", JobConfig(repository="git://git/digits", command=("--version",)))
        asyncio.run(_relay(jenkins.port))
