"""The Celery app of this installation's settings, for Celery's own programs: `celery --app orchestrator.launchers.app`.

So no command line holds the broker's password.
"""

from orchestrator.launchers.celery import app_options, make_celery
from orchestrator.settings.groups import LauncherSettings
from orchestrator.settings.source import SettingsSource

app = make_celery(app_options(SettingsSource().read(LauncherSettings)))
