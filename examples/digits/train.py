"""The entry point `main` of the MLproject: one training, recorded in MLflow."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The package is the wheel that install.sh has put there, else the checkout's own.
sys.path.insert(0, str(Path(__file__).with_name("src")))
sys.path.insert(0, str(Path(__file__).with_name(".wheel")))

import mlflow
from digits import recording
from digits.config import training_config


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default="train.yaml")
    parser.add_argument("--overrides", default="", help="such as 'epochs=20 alpha=0.001'")
    given = parser.parse_args()
    config = training_config(given.config, given.overrides)
    # Under `mlflow run` this takes up the run of MLFLOW_RUN_ID; alone it starts one.
    with mlflow.start_run() as run:
        print(f"MLflow run {run.info.run_id}", flush=True)
        recording.run(config)


if __name__ == "__main__":
    main()
