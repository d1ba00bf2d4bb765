"""`/metrics`: what Prometheus scrapes, read of Dagster, EC2 and MLflow."""

from orchestrator.operate.web.metrics.page import MetricsPage

__all__ = ["MetricsPage"]
