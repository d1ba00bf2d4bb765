"""The settings that a pipeline needs at least; for tests of settings and plans."""

COMPLETE = {
    "JENKINS_URL": "https://jenkins.example.com/",
    "JENKINS_USER": "ci",
    "JENKINS_TOKEN": "11aa22bb33",
    "JENKINS_JOB_NAME": "team/project",
    "AMI_ID": "ami-1",
    "KEY_PAIR_NAME": "key",
    "KEY_PATH": "/keys/key.pem",
    "SECURITY_GROUP_ID": "sg-1",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
    "MLFLOW_EXPERIMENT_ID": "7",
}
