#!/bin/sh
# A Space has secrets in variables only; the SSH key is wanted as a file, and by no other process.
set -eu
if [ -n "${SSH_PRIVATE_KEY:-}" ]; then
  (umask 077 && printf '%s\n' "$SSH_PRIVATE_KEY" >"$KEY_PATH")
  unset SSH_PRIVATE_KEY
fi
exec orchestrator-container "$@"
