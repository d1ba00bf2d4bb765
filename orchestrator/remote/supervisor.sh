#!/bin/sh
# Runs one training on the instance: outlives the SSH connection, keeps the deadline, tells how it ended.
#
# It lives in ~/.orchestrator/<MLflow run ID>/ (mode 0700), is called there as `sh ./supervisor.sh VERB ...`
# (the verbs stand at the end), and needs a POSIX shell, Linux' /proc, and coreutils or busybox.
#
#   job.*           exports and command, mode 0600; removed before the command starts
#   log             standard output and error of the training, in order
#   supervisor.log  complaints of this script
#   hooks/          what is loaded into `mlflow run` and the command's bash, so that a failed training exits non-zero
#   guarded         `mlflow run` has loaded its hook
#   docker.env      names of the variables that a container gets; their values are in the environment only
#   docker.client   how the training's Docker is reached, for whoever ends its containers
#   secret.NAME -> "PATH"  a file of the training that none but its login may read; removed when it ends
#
# What must appear at once and whole, and can be claimed only once, is a symbolic link whose target is the
# text: one system call, and it works on a full disk, where a file would be left empty.
#
#   pid -> "PID BOOT BIRTH"  the supervisor;   child -> "PID"  the training, and its session
#   stop -> "GRACE"          asked to stop;    cause -> "deadline" or "stopped"  why it is being ended
#   exit -> "HOW STATUS EPOCH FACT=NUMBER..."  how it ended: exited, signaled, deadline, stopped
#   kernel -> "OOM_KILLS OOM_KILLS"  the kernel's counts at the start: of the machine, of our cgroup
#   memory -> "KILOBYTES"            the least memory that was available
#   xids -> "COUNT"                  what NVIDIA's driver had told of failed GPUs at the start
#   user -> "NAME UID"  the training's own login (TRAINING_USER): none of the above is within its reach
#
# Without that login the training can reach all of it, so its deadline has keepers outside of the machine.
set -u
login_umask=$(umask)
umask 077

pause() { # SECONDS: fractions where `sleep` knows them
  sleep "$1" 2>/dev/null || sleep 1
}

now() { # seconds that nobody can set; `date` could be set back by a training that may do so
  { read -r uptime _ </proc/uptime; } 2>/dev/null && echo "${uptime%%.*}" || date +%s
}

told() { # NAME: the text behind a link; nothing when there is none
  readlink "$1" 2>/dev/null
}

detached() { # PROGRAM ARGUMENT...: becomes it, in a session of its own, under the same process ID
  if command -v setsid >/dev/null; then
    exec setsid "$@"
  elif command -v python3 >/dev/null; then
    exec python3 -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' "$@"
  else
    trap '' HUP
    exec "$@"
  fi
}

scope() { # what to start a program with, so that it outlives the login; nothing where it does so anyway, or cannot
  # logind's KillUserProcesses: a session of setsid is still a part of the login for it.
  case $(timeout 2 loginctl show-session --property=KillUserProcesses) in
    *=yes)
      timeout 2 loginctl enable-linger >/dev/null && timeout 4 systemd-run --user --scope --quiet -- true >/dev/null &&
        echo systemd-run --user --scope --quiet --
      ;;
  esac
} </dev/null 2>/dev/null

# ---------------------------------------------------------------------------- processes, seen through /proc
# Field numbers of /proc/PID/stat: proc(5). The name in parentheses may hold anything, so we cut behind it.

born() { # PID: "BOOT BIRTH" of a living process, which never come twice
  boot=-
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # shellcheck disable=SC2086 # the fields are to be split
  set -- ${stat##*) }
  case $1 in [ZX]) return 1 ;; esac
  echo "$boot ${20}"
}

rebooted() { # whether the supervisor of this directory lived on an earlier boot of the machine
  owner=$(told pid) || return 1
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || return 1
  case $owner in
    *" - "*) return 1 ;;
    *" $boot "*) return 1 ;;
  esac
}

alive() { # whether the supervisor of this directory lives, on this boot of the machine
  owner=$(told pid) || return 1
  [ "${owner#* }" = "$(born "${owner%% *}")" ]
}

members() { # processes of the training: of its login; or of its session, or bearing its mark
  if [ -h user ]; then
    user=$(told user)
    stat -c '%u %n' /proc/[0-9]* 2>/dev/null | while read -r of process; do
      [ "$of" = "${user#* }" ] && born "${process#/proc/}" >/dev/null && echo "${process#/proc/}"
    done
    return 0
  fi
  owner=$(told pid) && session=$(told child) || return 0
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || boot=-
  case $owner in *" $boot "*) ;; *) return 0 ;; esac
  for file in /proc/[0-9]*/stat; do
    { read -r stat <"$file"; } 2>/dev/null || continue
    process=${stat%% *}
    # shellcheck disable=SC2086 # the fields are to be split
    set -- ${stat##*) }
    case $1 in [ZX]) continue ;; esac
    case $session in "$4" | "$process") echo "$process" ;; esac
  done
  grep -lszF "ORCHESTRATOR_TRAINING=$PWD/" /proc/[0-9]*/environ | while IFS=/ read -r _ _ process _; do
    echo "$process"
  done
}

signal() { # NAME: to all of them
  if [ -h user ]; then
    user=$(told user)
    # shellcheck disable=SC2046 # the IDs are to be split
    set -- "$1" $(members)
    [ $# -eq 1 ] || sudo -n -u "${user% *}" kill -s "$@" 2>/dev/null
  else
    members | while read -r member; do kill -s "$1" "$member" 2>/dev/null; done
  fi
}

by_user() { # VERB: done by the training's own login, in its own directory
  user=$(told user)
  sudo -n -H -u "${user% *}" sh -c 'cd && cd ".orchestrator/$1" && exec sh ./supervisor.sh "$2"' \
    sh "${PWD##*/}" "$1" </dev/null >/dev/null 2>&1
  return 0
}

forget() { # the training's secret files: nobody needs them any more
  [ ! -h user ] || by_user forget
  for secret in secret.*; do
    [ ! -h "$secret" ] || rm -f -- "$(told "$secret")"
  done
}

end_containers() { # those that bear the training's label: its processes are no members of its session
  if [ -h user ]; then
    by_user end_containers
    return 0
  fi
  [ -e docker.client ] || return 0
  (
    while IFS= read -r line; do export "${line?}"; done <docker.client
    client=$(command -v docker) || exit
    # A client that is killed leaves its container, and the one of a build that was broken off may be about to start one.
    # shellcheck disable=SC2046 # the IDs are to be split
    set -- $(timeout 5 "$client" ps --all --quiet --filter "label=orchestrator.training=${PWD##*/}")
    [ $# -eq 0 ] || timeout 10 "$client" rm --force "$@" >/dev/null
  ) 2>/dev/null
}

end() { # CAUSE GRACE: asks them to end, waits GRACE seconds, then ends them
  ln -s "$1" cause
  signal TERM
  limit=$(($(now) + $2))
  while [ -n "$(members)" ] && [ "$(now)" -lt "$limit" ]; do pause 0.2; done
  end_containers # first, so that its last output is still read
  limit=$(($(now) + 10))
  while [ -n "$(members)" ] && [ "$(now)" -lt "$limit" ]; do
    signal KILL
    pause 0.2
  done
  end_containers # one that was about to start
  forget
}

# ------------------------------------------------------------------------------------- what the kernel can tell

number_in() { # NAME FILE...: behind the name, in the first file that has it; "-" where none has
  name=$1
  shift
  line=$(grep -hs "^$name[: ]" "$@" </dev/null)
  # shellcheck disable=SC2086 # the fields are to be split
  set -- ${line:-- -}
  echo "$2"
}

oom_kills() { # how many processes the kernel has killed for lack of memory: of the machine, and of our cgroup
  of=
  while IFS=: read -r _ kinds group; do
    case $kinds in
      "") of="$of /sys/fs/cgroup$group/memory.events /sys/fs/cgroup/unified$group/memory.events" ;;
      memory) of="$of /sys/fs/cgroup/memory$group/memory.oom_control" ;;
    esac
  done </proc/self/cgroup
  # shellcheck disable=SC2086 # the files are to be split
  echo "$(number_in oom_kill /proc/vmstat) $(number_in oom_kill $of)"
} 2>/dev/null

note_memory() { # keeps the least that was available, to within a hundredth
  while read -r name available _; do
    [ "$name" != MemAvailable: ] || break
  done </proc/meminfo
  [ "$name" = MemAvailable: ] && [ "$((available + available / 100))" -lt "${least:-999999999999}" ] || return 0
  least=$available
  ln -sfn "$least" memory
} 2>/dev/null

xids() { # what NVIDIA's driver has told of failed GPUs since the boot, a line each; nothing where the log is not readable
  for reader in "dmesg" "sudo -n dmesg" "journalctl --dmesg --boot --output=cat --no-pager"; do
    # shellcheck disable=SC2086 # the words are to be split
    if lines=$(timeout 3 $reader </dev/null); then
      printf '%s\n' "$lines" | grep -F "NVRM: Xid"
      return 0
    fi
  done
} 2>/dev/null

facts() { # as " NAME=NUMBER": what the machine can tell of an end; what it cannot tell is left out
  # shellcheck disable=SC2046 # the numbers are to be split
  set -- $(told kernel || echo - -) $(oom_kills)
  for pair in "oom_kills $1 ${3--}" "cgroup_oom_kills $2 ${4--}"; do
    # shellcheck disable=SC2086 # the fields are to be split
    set -- $pair
    case "$2$3" in *[!0-9]*) ;; *) [ "$3" -lt "$2" ] || printf ' %s=%s' "$1" $(($3 - $2)) ;; esac
  done
  disk=$(df -Pk . | tail -n 1)
  # shellcheck disable=SC2086 # the fields are to be split
  set -- ${disk:-- - - -}
  for pair in "memory_kb $(number_in MemTotal /proc/meminfo)" "least_memory_kb $(told memory)" "disk_kb $4"; do
    case ${pair#* } in "" | *[!0-9]*) ;; *) printf ' %s' "${pair% *}=${pair#* }" ;; esac
  done
  first=$(xids | tail -n "+$(($(told xids || echo 0) + 1))" | head -n 1)
  xid=$(printf %s "$first" | sed -n 's/.*NVRM: Xid ([^)]*): *\([0-9]\{1,9\}\).*/\1/p')
  [ ! -h xids ] || [ -z "$xid" ] || printf ' xid=%s' "$xid"
} 2>/dev/null

# --------------------------------------------------------------------------------------- the training itself

known_places() { # where programs are that a login over SSH often lacks on its PATH, those of `mlflow` first; as a PATH
  for place in ~/.local/bin ~/venv/bin ~/.venv/bin ~/mlflow/bin ~/miniconda3/bin ~/miniforge3/bin ~/mambaforge/bin \
    ~/anaconda3/bin /opt/conda/bin /opt/miniconda3/bin /opt/miniforge3/bin /opt/anaconda3/bin /opt/venv/bin \
    /opt/mlflow/bin ~/.cargo/bin ~/.pyenv/bin ~/.pyenv/shims /opt/pyenv/bin /opt/pyenv/shims /usr/local/bin /snap/bin; do
    [ ! -d "$place" ] || printf '%s:' "$place"
  done
}

login_path() { # what the profile of a terminal makes of PATH; nothing where that takes longer than 5 s
  # Into a file and in the background: what a profile waits for, or leaves behind, must not hold us up.
  export ORCHESTRATOR_PATH="${ORCHESTRATOR_TRAINING}profile.$$"
  # shellcheck disable=SC2016 # that shell expands it
  "${SHELL:-/bin/sh}" -lc \
    'printf "%s\n" "$PATH" >"$ORCHESTRATOR_PATH.new" && mv -f "$ORCHESTRATOR_PATH.new" "$ORCHESTRATOR_PATH"' \
    </dev/null >/dev/null 2>&1 &
  probe=$!
  limit=$(($(now) + 5))
  until [ -e "$ORCHESTRATOR_PATH" ] || ! born "$probe" >/dev/null; do
    if [ "$(now)" -ge "$limit" ]; then
      kill -s KILL "$probe"
      echo "orchestrator: the login's profile (~/.profile) did not end within 5 s, so PATH is without what it adds" >&3
      break
    fi
    pause 0.1
  done
  [ ! -e "$ORCHESTRATOR_PATH" ] || tail -n 1 "$ORCHESTRATOR_PATH"
  rm -f -- "$ORCHESTRATOR_PATH" "$ORCHESTRATOR_PATH.new"
} 3>&2 2>/dev/null

wider_path() { # PROGRAM: PATH and, behind it, what is not on it yet: what was found before stays what it is
  # Its variables are those of a subshell: the training may have some of the same names.
  more=$(login_path):$(known_places)
  wider=$PATH
  set -f
  IFS=:
  command -v "$1" >/dev/null || for place in $(known_places); do
    if [ -x "$place/$1" ]; then
      wider=$place:$PATH # as an activated environment would: its python goes with its mlflow
      break
    fi
  done
  for place in $more; do
    case :$wider: in *":$place:"*) ;; *) wider=$wider${place:+:$place} ;; esac
  done
  printf '%s\n' "$wider"
}

docker_of_snap() { # whether that is the Docker of the PATH that we widen
  case $(command -v docker) in
    */snap/*) ;;
    "") [ -x /snap/bin/docker ] ;;
    *) return 1 ;;
  esac
}

reach_docker() { # keeps what it takes: the supervisor has neither the training's PATH nor its variables
  command -v docker >/dev/null || return 0
  (
    umask 077
    env | grep -E '^(PATH|DOCKER_HOST|DOCKER_CONTEXT|DOCKER_CONFIG|DOCKER_CERT_PATH|DOCKER_TLS_VERIFY)=' \
      >"${ORCHESTRATOR_TRAINING}docker.client"
  )
}

place() { # NAME TEXT VARIABLE MODE: a file of the job; VARIABLE, if any, says where it is
  [ "$4" != 600 ] || ln -sfn "$ORCHESTRATOR_FILES$1" "${ORCHESTRATOR_TRAINING}secret.$1" # first: what is noted is removed
  (umask 077 && printf %s "$2" >"$ORCHESTRATOR_FILES$1") && chmod "$4" "$ORCHESTRATOR_FILES$1"
  [ -z "$3" ] || export "$3=$ORCHESTRATOR_FILES$1"
}

guard() { # PROGRAM: see hooks/sitecustomize.py and hooks/pipes.bash
  ORCHESTRATOR_MLFLOW=$(command -v "$1")
  PYTHONPATH=${ORCHESTRATOR_TRAINING}hooks${PYTHONPATH:+:$PYTHONPATH}
  ORCHESTRATOR_BASH_ENV=${BASH_ENV-}
  BASH_ENV=${ORCHESTRATOR_TRAINING}hooks/pipes.bash
  export ORCHESTRATOR_MLFLOW PYTHONPATH ORCHESTRATOR_BASH_ENV BASH_ENV
}

run() { # PROGRAM ARGUMENT...: the last line of the job; becomes the program
  exec 3<&-
  cd || exit 126
  case $1 in
    */*) PATH=${1%/*}:$PATH ;; # likewise
  esac
  PATH=$(wider_path "$1")
  export PATH
  if ! command -v "$1" >/dev/null; then
    echo "orchestrator: there is no program $1 on this machine (PATH=$PATH): set MLFLOW_COMMAND to where it is," \
      "or AMI_ID to an image that has it"
    exit 127
  fi
  reach_docker
  guard "$1"
  exec "$@"
}

train() { # UMASK; the job on file descriptor 3
  umask "$1"
  export ORCHESTRATOR_TRAINING="$PWD/"
  export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}" # or Python would hold back what it prints, and mix its order
  ORCHESTRATOR_FILES=$ORCHESTRATOR_TRAINING
  if docker_of_snap; then # it sees no hidden folder
    ORCHESTRATOR_FILES=~/snap/docker/common/orchestrator-${PWD##*/}/
    mkdir -p "$ORCHESTRATOR_FILES"
  fi
  export ORCHESTRATOR_FILES
  case $ORCHESTRATOR_FILES in # as a word of bash: `mlflow run` has bash read the arguments of `docker run`
    *[!A-Za-z0-9_./-]*) directory='"${ORCHESTRATOR_FILES}"' ;;
    *) directory=$ORCHESTRATOR_FILES ;;
  esac
  # shellcheck disable=SC1091 # it is written by training.py
  . /proc/self/fd/3
}

unprivileged() { # PROGRAM ARGUMENT...: becomes it, without a way to more rights by sudo and its like, where that can be had
  if docker_of_snap; then exec "$@"; fi # what snap starts needs more rights
  if setpriv --no-new-privs true 2>/dev/null; then exec setpriv --no-new-privs "$@"; else exec "$@"; fi
}

text_of() { # FILE TARGET: a command that writes the file's text into another one
  end_of_text=END_${PWD##*/}_$$ # which nobody could have written into it
  printf "cat >%s <<'%s'\n" "$2" "$end_of_text"
  cat "$1"
  printf '\n%s\n' "$end_of_text"
}

as_user() { # NAME UMASK: the training of its own login, which reads all that it needs from a pipe; the job on descriptor 3
  {
    printf 'umask 077; cd || exit 126; mkdir -p .orchestrator/%s/hooks && cd .orchestrator/%s || exit 126\n' \
      "${PWD##*/}" "${PWD##*/}"
    for file in supervisor.sh hooks/*.*; do text_of "$file" "$file"; done
    text_of /proc/self/fd/3 job
    printf 'exec 3<job && rm -f job && exec sh ./supervisor.sh begin %s </dev/null\n' "$2"
  } | sudo -n -H -u "$1" sh -s
}

watch() { # DEADLINE
  until [ -h exit ]; do
    if [ -h stop ]; then
      end stopped "$(told stop)"
      return
    elif [ "$(now)" -ge "$1" ]; then
      end deadline 10
      return
    elif ! alive && [ -z "$(members)" ]; then # the supervisor was killed, and the training has ended
      forget
      return
    fi
    note_memory
    pause 0.5
  done
}

supervise() { # SECONDS JOB UMASK USER
  exec 3<"$2" # before anything else: whatever the job's variables do, no file of it is left
  rm -f -- "$2"
  ln -s "$$ $(born $$)" pid 2>/dev/null || return
  ln -s -- "$(oom_kills)" kernel # "-" where it does not count
  ln -s "$(($(xids | wc -l)))" xids
  if [ -h user ]; then
    detached sh ./supervisor.sh as_user "$4" "$3" </dev/null >>log 2>&1 &
  else
    detached sh ./supervisor.sh train "$3" </dev/null >>log 2>&1 &
  fi
  child=$!
  exec 3<&-
  ln -s "$child" child
  watch $(($(now) + $1)) &
  watcher=$!
  wait "$child"
  status=$?
  how=exited
  [ "$status" = 0 ] || [ -h cause ] || end_containers # one whose client was killed, say
  if [ -h cause ]; then
    wait "$watcher"
    how=$(told cause)
  else
    case $status in # a shell says 128 + N for signal N; these are the signals that end a process
      129 | 130 | 131 | 132 | 133 | 134 | 135 | 136 | 137 | 139 | 141 | 142 | 143 | 152 | 153)
        how=signaled
        status=$((status - 128))
        ;;
    esac
  fi
  forget
  ln -s "$how $status $(date +%s)$(facts)" exit
}

# ------------------------------------------------------------------------------------------------- the verbs

state() { # absent, running, lost, rebooted, or how it ended
  if [ -h exit ]; then
    told exit
  elif [ ! -h pid ]; then
    echo absent
  elif alive; then
    echo running
  else # it may have ended between the two looks
    told exit || { rebooted && forget && echo rebooted; } || echo "lost$(facts)"
  fi
}

can_become() { # NAME: whether there is such a login, other than this one, that this one may use
  { [ "$(id -u "$1")" != "$(id -u)" ] && sudo -n -H -u "$1" true; } >/dev/null 2>&1 </dev/null
}

start() { # SECONDS BYTES [USER], and the job on standard input; the second start of a training changes nothing
  job=job.$$
  cat >"$job"
  if [ $(($(wc -c <"$job"))) -ne "$2" ]; then
    rm -f -- "$job"
    echo "the job did not arrive whole (is the disk full?)" >&2
    return 1
  fi
  as=
  if [ -z "${3-}" ] || [ -h pid ]; then
    :
  elif can_become "$3"; then
    ln -s "$3 $(id -u "$3")" user 2>/dev/null
  else
    as=" as-login"
  fi
  in_scope=$(scope)
  # shellcheck disable=SC2086 # the words are to be split
  if [ -h user ]; then # sudo is how its login is become
    detached $in_scope sh ./supervisor.sh supervise "$1" "$job" "$login_umask" "$3" </dev/null >>supervisor.log 2>&1 &
  else
    unprivileged sh ./supervisor.sh detach $in_scope sh ./supervisor.sh supervise "$1" "$job" "$login_umask" "" \
      </dev/null >>supervisor.log 2>&1 &
  fi
  launched=$!
  limit=$(($(now) + 10))
  until [ -h pid ] || [ "$(now)" -gt "$limit" ]; do pause 0.1; done
  case $(told pid) in
    "")
      rm -f -- "$job"
      tail -n 3 supervisor.log >&2
      return 1
      ;;
    "$launched "*) echo "state: started$as" ;;
    *)
      wait "$launched"
      echo "state: adopted"
      ;;
  esac
}

follow() { # OFFSET BEHIND: the log from there to standard output, as it grows; signs of life to standard error
  # Where more than BEHIND bytes wait, it says where the last BEHIND of them begin, and ends: we are called again with that.
  offset=$1
  printf '\036orchestrator log\n' # what came before is noise of the login shell
  beat=0
  while :; do
    how=$(state) # before the log is read: what is written last is read, too
    size=$(stat -c %s log 2>/dev/null) || size=0
    if [ "$size" -gt "$offset" ]; then
      if [ -n "$2" ] && [ "$((size - offset))" -gt "$2" ]; then
        echo "state: skip $((size - $2))" >&2
        return
      fi
      tail -c "+$((offset + 1))" log | head -c "$((size - offset))" || return 1
      offset=$size
    fi
    if [ "$how" != running ]; then
      echo "state: $how" >&2
      return
    fi
    if [ $((beat % 5)) -eq 0 ]; then
      echo "state: running" >&2 || return 1
    fi
    beat=$((beat + 1))
    pause 0.4
  done
}

stop() { # GRACE: returns when no process of the training is left
  if [ -h pid ]; then
    ln -s "$1" stop 2>/dev/null
    limit=$(($(now) + $1 + 30))
    while [ "$(state)" = running ] && [ "$(now)" -lt "$limit" ]; do pause 0.2; done
    case $(state) in
      lost* | rebooted)
        end stopped "$1"
        ln -s "stopped 0 $(date +%s)" exit
        ;;
    esac
  fi
  echo "state: $(state)"
}

case $1 in
  start) start "$2" "$3" "${4-}" ;;
  detach) shift && detached "$@" ;;
  supervise) supervise "$2" "$3" "$4" "$5" ;;
  begin) unprivileged sh ./supervisor.sh train "$2" ;;
  train) train "$2" ;;
  end_containers) end_containers ;;
  forget) forget ;;
  as_user) as_user "$2" "$3" ;;
  follow) follow "$2" "${3-}" ;;
  stop) stop "$2" ;;
  state) echo "state: $(state)" ;;
  last) tail -c 65536 log | tail -n "$2" ;;
esac
