"""How much memory the metric histories of a long training take while they are read.

    python -m benchmarks.metric_histories [--metrics 36] [--points 100000]

A server on loopback that answers as MLflow does, page by page, with numbers that are made up while they are sent.
Prints seconds, how many points are left, and by how much the process has grown at its largest.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from orchestrator.pipeline.training.curves import learning_curves
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings.groups import MlflowSettings


class Histories(BaseHTTPRequestHandler):
    """Answers `metrics/get-history`."""

    points = 0

    def do_GET(self) -> None:
        """One page."""
        query = parse_qs(urlsplit(self.path).query)
        first, size = int(query.get("page_token", ["0"])[0]), int(query["max_results"][0])
        steps = range(first, min(first + size, self.points))
        metrics = [
            {"key": "loss", "value": math.sin(step), "step": step, "timestamp": 1_700_000_000_000 + step}
            for step in steps
        ]
        answer: dict[str, object] = {"metrics": metrics}
        if steps.stop < self.points:
            answer["next_page_token"] = str(steps.stop)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def megabytes() -> float:
    """The largest size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read them, and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--metrics", type=int, default=36, help="how many histories")
    parser.add_argument("--points", type=int, default=100_000, help="values of each")
    arguments = parser.parse_args()
    Histories.points = arguments.points
    server = ThreadingHTTPServer(("127.0.0.1", 0), Histories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = MlflowSettings.model_validate(
        {"tracking_uri": f"http://127.0.0.1:{server.server_port}", "experiment_id": "1"}
    )
    with Mlflow(settings) as mlflow:
        before, began = megabytes(), time.monotonic()
        histories = {f"m{number}": mlflow.metric_history("r", f"m{number}") for number in range(arguments.metrics)}
        kept = sum(map(len, histories.values()))
        seconds = time.monotonic() - began
        sys.stdout.write(
            f"{seconds:.1f} s, {kept} of {arguments.metrics * arguments.points} points, "
            f"+{megabytes() - before:.0f} MB\n"
        )
        learning_curves(histories)
        sys.stdout.write(f"with the picture: +{megabytes() - before:.0f} MB\n")
    server.shutdown()


if __name__ == "__main__":
    main()
