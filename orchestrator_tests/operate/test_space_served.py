"""`orchestrator serve` under the rules of a Hugging Face Space: its user, its files, its network."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.space_network import REACHES, SPACE, WORLD, cable, relay
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
NAME = "acme-orchestrator.hf.space"

# In a network and with mounts of its own: what root alone can reach is put where user 1000 can, all else is read-only
# but for /tmp; then it waits for its network.
ENTER = """set -e
mount --make-rprivate /
hold=$(mktemp -d)
for place in $PLACES; do mkdir -p "$hold$place"; mount --bind "$place" "$hold$place"; done
for place in $CLOSED; do mount -t tmpfs -o mode=755 tmpfs "$place"; done
for place in $PLACES; do mkdir -p "$place"; mount --bind "$hold$place" "$place"; mount -o remount,bind,ro "$place"; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /
mkdir -m 0700 /tmp/home
chown 1000:1000 /tmp/home
cd /tmp/home
read -r _
unset PLACES CLOSED
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs "$@"
"""


def closed_to_others(places: list[Path]) -> list[Path]:
    """The topmost folders on the way to these that only their owner can enter."""
    ways = [list(reversed([place, *place.parents])) for place in places]
    found = [next((folder for folder in way if not folder.stat().st_mode & 0o001), None) for way in ways]
    return sorted({folder for folder in found if folder})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a network of its own")
def test_it_serves_where_little_gets_out_and_nothing_can_be_written(tmp_path: Path) -> None:
    with Postgres() as server:
        database = server.new_database()
        url = server.url(database).replace(f"127.0.0.1:{server.port}", f"{WORLD}:443")
        places = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/tmp/home",
            "DAGSTER_HOME": "/tmp/home/dagster",
            "PLACES": " ".join(map(str, places)),
            "CLOSED": " ".join(map(str, closed_to_others(places))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SPACE_ID": "acme/orchestrator",
            "SPACE_HOST": NAME,
            "SSH_PORT": "443",
            "ORCHESTRATOR_DEPLOYMENT": "acme",
            "UI_INSECURE": "true",
            "UI_TOKEN": secrets.token_hex(32),
            "DAGSTER_POSTGRES_URL": url,
        }
        command = [sys.executable, "-m", "orchestrator.cli", "serve", "--host", "0.0.0.0", "--port", "7860"]
        log = tmp_path / "serve.log"
        with log.open("wb") as output:
            serve = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", ENTER, "sh", *command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            own, ours = (Path(f"/proc/{process}/ns/net") for process in (serve.pid, "self"))
            until(lambda: own.stat().st_ino != ours.stat().st_ino)

            def ready() -> bool:
                assert serve.poll() is None, log.read_text()
                with suppress(requests.RequestException):
                    return requests.get(f"http://{SPACE}:7860/health/ready", headers={"Host": NAME}, timeout=10).ok
                return False

            def reaches(port: int) -> bool:
                words = [
                    "nsenter",
                    "--target",
                    str(serve.pid),
                    "--net",
                    sys.executable,
                    "-c",
                    REACHES,
                    WORLD,
                    str(port),
                ]
                return subprocess.run(words, check=False, capture_output=True).returncode == 0

            try:
                with cable(serve.pid), relay(443, to=server.port), relay(5432, to=server.port):
                    assert serve.stdin is not None
                    serve.stdin.write(b"\n")
                    serve.stdin.close()
                    until(ready, seconds=300, every=0.5)
                    page = requests.get(f"http://{SPACE}:7860/", headers={"Host": NAME}, timeout=30)
                    assert page.status_code == 401
                    assert set(psutil.Process(serve.pid).uids()) == {1000}
                    assert server.query("select count(*) from runs", database=database) == [(0,)]
                    assert (reaches(443), reaches(5432)) == (True, False)
                    serve.terminate()
                    serve.wait(120)
            finally:
                serve.kill()
                serve.wait()
