-- MLflow's tables stand in a database of their own, on the same server.
CREATE DATABASE mlflow;
