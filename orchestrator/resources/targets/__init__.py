"""Targets: where a model is put into use. Each one says itself what is in use there."""

from orchestrator.resources.targets.declared import HostBlock, TargetBlock
from orchestrator.resources.targets.directory import DirectoryTarget
from orchestrator.resources.targets.host import HostTarget, InferenceHost
from orchestrator.resources.targets.release import RECORD, Holder, ModelFile, ModelFolder, Release, Target
from orchestrator.resources.targets.s3 import S3Target
from orchestrator.resources.targets.sagemaker import SageMakerEndpoint, SageMakerTarget

__all__ = [
    "RECORD",
    "DirectoryTarget",
    "Holder",
    "HostBlock",
    "HostTarget",
    "InferenceHost",
    "ModelFile",
    "ModelFolder",
    "Release",
    "S3Target",
    "SageMakerEndpoint",
    "SageMakerTarget",
    "Target",
    "TargetBlock",
]
