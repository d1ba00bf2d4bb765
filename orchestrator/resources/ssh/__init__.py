"""SSH: verified connections to instances, which run commands."""

from orchestrator.resources.ssh.channel import Completed
from orchestrator.resources.ssh.connection import Ssh, SshResource
from orchestrator.resources.ssh.host_keys import require_known_hosts
from orchestrator.resources.ssh.login_key import private_key
from orchestrator.resources.ssh.login_words import login_advice, login_words

__all__ = ["Completed", "Ssh", "SshResource", "login_advice", "login_words", "private_key", "require_known_hosts"]
