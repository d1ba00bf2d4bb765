"""The supervisor that runs on the instance, and our side of it."""

from orchestrator.remote.job import UNUSABLE, can_be_given, is_variable
from orchestrator.remote.masking import Masker
from orchestrator.remote.output import TrainingOutput, whole_output
from orchestrator.remote.training import RemoteTraining
from orchestrator.remote.training_exit import TrainingExit

__all__ = [
    "UNUSABLE",
    "Masker",
    "RemoteTraining",
    "TrainingExit",
    "TrainingOutput",
    "can_be_given",
    "is_variable",
    "whole_output",
]
