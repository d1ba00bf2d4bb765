# Sourced by every bash below `mlflow run` (BASH_ENV). In the one that runs the project's command it makes the command
# fail when a part of a pipe failed that the pipe's own status hides: `python train.py | tee log`.
#
# Not `set -o pipefail`: with it, the harmless SIGPIPE of `zcat data.gz | head -n 9 >some.csv && python train.py` would
# skip the training. A hidden failure counts where pipefail would let it through to the end: in the last pipe that ran,
# and in one before an `&&`. `nvidia-smi | head; python train.py` stays what it was on a machine without nvidia-smi.
# So does `python train.py; python evaluate.py`, unless train.py failed and MLflow then holds the run as FAILED: evaluate.py
# would take it up again, and end it well. What `||`, `if` or a loop reckons with is no failure.
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
  __orchestrator_begun=0
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

  __orchestrator_next() { # STATUS LAST_ARGUMENT NEXT_COMMAND STATUS...: before each command
    __orchestrator_last=$2
    local ended=$1 before=$__orchestrator_command
    __orchestrator_command=$3
    shift 3
    [ -n "$before" ] || return 0
    case "$ended $*" in *[1-9]*) ;; *) return 0 ;; esac
    __orchestrator_ignored "$before" "$ended" "$@"
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

  __orchestrator_ignored() { # COMMAND STATUS STATUS...: of what ended, as for `_end`; counts what failed before a `;`
    local before=$1 status failed=0
    shift
    [ "$__orchestrator_failed" = 0 ] || return 0
    for status in "$@"; do
      case $status in 0 | 141) ;; *) failed=$status ;; esac
    done
    case "$failed $before" in
      "0 "* | *" for "* | *" case "* | *" select "* | *" (("* | *" [["*) return 0 ;; # no command, or one that stands for others
    esac
    # It has to stand in one place, so that no other meaning is taken for this one's, and on a line of its own.
    local text= rest=$__orchestrator_program places=0 line= after=
    local whole=$'^([;|&)]| [|&})]| [0-9]*[<>]|\n|$)'
    while case $rest in *"$before"*) ;; *) false ;; esac do
      text+=${rest%%"$before"*}
      rest=${rest#*"$before"}
      if [[ $rest =~ $whole ]]; then
        places=$((places + 1)) line=${text##*$'\n'} after=$rest
      fi
      text+=$before
    done
    [ "$places" = 1 ] || return 0
    case $after in $';\n'*) ;; *) return 0 ;; esac
    case $line in
      '    ' | '    '[!' ({!']*'&& ' | '    '[!' ({!']*' | ') ;;
      *) return 0 ;;
    esac
    case $line in *'||'* | '    time '*) return 0 ;; esac
    # What a part before this one ended, and the command reckoned with, is none of this one's doing.
    __orchestrator_run_failed "$__orchestrator_begun" || return 0
    echo "orchestrator: $before ended with status $failed and left its MLflow run as FAILED or KILLED" >&2
    __orchestrator_failed=$failed
  }

  __orchestrator_run_failed() { # SECONDS: whether MLflow holds the run as FAILED or KILLED, since then by this machine's clock
    [ -n "${ORCHESTRATOR_TRAINING-}" ] && [ -n "${ORCHESTRATOR_MLFLOW-}" ] || return 1
    local described ended
    described=$("$ORCHESTRATOR_MLFLOW" runs describe --run-id "$MLFLOW_RUN_ID" 2>/dev/null) || return 1
    described=${described%%'"data":'*}
    case $described in *'"status": "FAILED"'* | *'"status": "KILLED"'*) ;; *) return 1 ;; esac
    ended=${described#*'"end_time": '}
    ended=${ended%%[!0-9]*}
    [ "$1" = 0 ] || [ "${ended:-0}" -ge "${1}000" ]
  }

  __orchestrator_unguarded() { # whether the script ended its MLflow run as FAILED, and `mlflow run` will not look
    [ ! -e "${ORCHESTRATOR_TRAINING-}guarded" ] || return 1 # see sitecustomize.py; `python -I` does not load it
    __orchestrator_run_failed 0 || return 1
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
  trap '__orchestrator_next "$?" "$_" "$BASH_COMMAND" "${PIPESTATUS[@]}"
    printf -v __orchestrator_begun "%(%s)T" -1; : "$__orchestrator_last"' DEBUG
fi
