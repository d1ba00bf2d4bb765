"""Train the model and record everything about it in MLflow: the entry point of the MLproject."""

from __future__ import annotations

import argparse
from importlib.metadata import version

import mlflow
import mlflow.sklearn
import model as digits
from mlflow.models import infer_signature


def main() -> None:
    """Train once, with the parameters of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--alpha", type=float, default=0.0001)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    # Under `mlflow run` this takes up the run of MLFLOW_RUN_ID; alone it starts one.
    with mlflow.start_run() as run:
        print(f"MLflow run {run.info.run_id}", flush=True)
        mlflow.log_params(vars(given))
        data = digits.load(given.seed)
        print(f"{len(data.train.digits)} pictures to learn from", flush=True)
        classifier = digits.build(learning_rate=given.learning_rate, alpha=given.alpha, seed=given.seed)
        for epoch, point in enumerate(digits.fit(classifier, data, epochs=given.epochs), start=1):
            mlflow.log_metrics(point, step=epoch)
            print(
                f"epoch {epoch:3}/{given.epochs}  loss {point['train_log_loss']:.4f}"
                f"  validation accuracy {point['validation_accuracy']:.4f}",
                flush=True,
            )
        metrics = digits.evaluate(classifier, data.test)
        mlflow.log_metrics(metrics)
        print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)
        mlflow.sklearn.log_model(
            classifier,
            name="model",
            signature=infer_signature(data.test.pictures[:5], data.test.digits[:5]),
            # Named, as MLflow would otherwise load the model in another process to find them out.
            pip_requirements=[f"{name}=={version(name)}" for name in ("scikit-learn", "numpy")],
        )
        print("model recorded", flush=True)


if __name__ == "__main__":
    main()
