"""Jenkins, EC2 with real SSH hosts, MLflow and a Git remote, on one laptop."""
