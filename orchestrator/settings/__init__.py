"""What can be set, and where it comes from."""

from orchestrator.settings.groups import (
    JanitorSettings,
    JenkinsSettings,
    MachineSettings,
    MlflowSettings,
    ProjectSettings,
    QueueSettings,
    SettingsGroup,
    SshSettings,
)
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator.settings.variables import lookup

__all__ = [
    "JanitorSettings",
    "JenkinsSettings",
    "MachineSettings",
    "MlflowSettings",
    "PipelineSettings",
    "ProjectSettings",
    "QueueSettings",
    "SettingsGroup",
    "SettingsSource",
    "SshSettings",
    "lookup",
]
