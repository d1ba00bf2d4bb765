#!/bin/sh
# What the container starts: the service on $PORT, or the command that it is given.
set -eu

# Instances are known by this name. The default, the host name, would be another one in the next container, and what
# this one launched would be nobody's.
if [ -z "${ORCHESTRATOR_DEPLOYMENT:-}" ]; then
  echo "orchestrator: ORCHESTRATOR_DEPLOYMENT is not set; give this installation a name that lasts, as in" \
    "\`docker run -e ORCHESTRATOR_DEPLOYMENT=team-a\`, because the instances it launches are found again by it" >&2
  exit 1
fi

# It does not start without a login, nor without TLS unless UI_INSECURE says that nobody reads on the way, as when the
# port is published on loopback, or a proxy with TLS stands before it.
[ $# -gt 0 ] || set -- orchestrator serve --host 0.0.0.0 --port "${PORT:-7860}"

# In the place of this shell, so that signals reach it.
exec "$@"
