"""The entry point `tune` of the MLproject: search hyperparameters, each trial a nested run, and train with the best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# As in train.py.
sys.path.insert(0, str(Path(__file__).with_name("src")))
sys.path.insert(0, str(Path(__file__).with_name(".wheel")))

import mlflow
import optuna
import yaml
from digits import data, recording
from digits.config import TrainingConfig


def main() -> None:
    """Search, then train and record the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default="hyperopt.yaml")
    parser.add_argument("--trials", type=int, default=20)
    given = parser.parse_args()
    plan = yaml.safe_load(given.config.read_text())
    base = TrainingConfig().with_changes(plan["training"])
    sets = data.load(seed=base.seed)

    def objective(trial: optuna.Trial) -> float:
        found = {name: trial.suggest_float(name, **limits) for name, limits in plan["search"].items()}
        with mlflow.start_run(run_name=f"trial {trial.number}", nested=True) as nested:
            recording.train(base.with_changes(found), sets)
            metrics = mlflow.get_run(nested.info.run_id).data.metrics
        return metrics[plan["metric"]]

    with mlflow.start_run() as run:
        print(f"MLflow run {run.info.run_id}", flush=True)
        study = optuna.create_study(direction=plan["direction"], sampler=optuna.samplers.TPESampler(seed=base.seed))
        study.optimize(objective, n_trials=given.trials)
        print(f"best: trial {study.best_trial.number} with {study.best_params}", flush=True)
        mlflow.log_metric(f"best_{plan['metric']}", study.best_value)
        recording.run(base.with_changes(study.best_params))


if __name__ == "__main__":
    main()
