# Sourced by every bash below `mlflow run` (BASH_ENV). In the one that runs the project's command it makes the command
# fail when a part of a pipe failed that the pipe's own status hides: `python train.py | tee log`.
#
# Not `set -o pipefail`: with it, the harmless SIGPIPE of `zcat data.gz | head -n 9 >some.csv && python train.py` would
# skip the training. A hidden failure counts where pipefail would let it through to the end: in the last pipe that ran,
# and in one before an `&&`. `nvidia-smi | head; python train.py` stays what it was on a machine without nvidia-smi.
# Pipes inside ( ), functions, $( ) and scripts that the command calls are their own business.

if [ -n "${ORCHESTRATOR_BASH_ENV-}" ] && [ -r "$ORCHESTRATOR_BASH_ENV" ]; then
  . "$ORCHESTRATOR_BASH_ENV" # the login's own
fi

# MLflow gives the run's ID to the command alone: other shells on the way there, such as shims, pass the hook on.
if [ -n "${BASH_EXECUTION_STRING-}" ] && [ -n "${MLFLOW_RUN_ID-}" ]; then
  if [ -n "${ORCHESTRATOR_BASH_ENV-}" ]; then BASH_ENV=$ORCHESTRATOR_BASH_ENV; else unset BASH_ENV; fi
  unset ORCHESTRATOR_BASH_ENV
  __orchestrator_failed=0
  __orchestrator_last=
  __orchestrator_command=
  # Bash's own print of the command: one `&&` list a line, spelt as BASH_COMMAND spells its commands.
  __orchestrator_program=$(
    eval "__orchestrator_program() {
$BASH_EXECUTION_STRING
}" 2>/dev/null && declare -f __orchestrator_program
  ) || __orchestrator_program=

  __orchestrator_hidden() { # STATUS...: of the parts of a pipe; prints the one that its own status hides
    local status part=0
    [ $# -gt 1 ] && [ "${!#}" = 0 ] || return 0
    for status in "$@"; do
      part=$((part + 1))
      if [ "$status" = 141 ]; then
        echo "orchestrator: part $part of a pipe was ended by SIGPIPE: nobody read on; this is no failure" >&2
      elif [ "$status" != 0 ]; then
        echo "orchestrator: part $part of a pipe failed with status $status, which the pipe's own status hides" >&2
        __orchestrator_failed=$status
        return
      fi
    done
  }

  __orchestrator_next() { # LAST_ARGUMENT NEXT_COMMAND STATUS...: before each command
    __orchestrator_last=$1
    local before=$__orchestrator_command
    __orchestrator_command=$2
    shift 2
    [ $# -gt 1 ] || return 0
    local rest=$__orchestrator_program before_and='^[[:space:]]*(\}[[:space:]]*)*&& '
    while case $rest in *"$before"*) ;; *) false ;; esac do
      rest=${rest#*"$before"}
      if [[ $rest =~ $before_and ]]; then
        __orchestrator_hidden "$@"
        return
      fi
    done
  }

  __orchestrator_unguarded() { # whether the script ended its MLflow run as FAILED, and `mlflow run` will not look
    [ -n "${ORCHESTRATOR_TRAINING-}" ] && [ -n "${ORCHESTRATOR_MLFLOW-}" ] || return 1
    [ ! -e "${ORCHESTRATOR_TRAINING}guarded" ] || return 1 # see sitecustomize.py; `python -I` does not load it
    local described
    described=$("$ORCHESTRATOR_MLFLOW" runs describe --run-id "$MLFLOW_RUN_ID") || return 1
    case ${described%%'"data":'*} in *'"status": "FAILED"'* | *'"status": "KILLED"'*) ;; *) return 1 ;; esac
    echo "orchestrator: the command exited 0, but the script had ended its MLflow run as FAILED or KILLED" >&2
  }

  __orchestrator_end() { # STATUS STATUS...: of the command, and of the parts of its last pipe
    local ended=$1
    shift
    if [ "$ended" = 0 ]; then
      __orchestrator_hidden "$@"
      [ "$__orchestrator_failed" = 0 ] || exit "$__orchestrator_failed"
      __orchestrator_unguarded && exit 1
    fi
    exit "$ended"
  }

  trap '__orchestrator_end "$?" "${PIPESTATUS[@]}"' EXIT
  trap '__orchestrator_next "$_" "$BASH_COMMAND" "${PIPESTATUS[@]}"; : "$__orchestrator_last"' DEBUG
fi
