#!/bin/bash
# The steps of the Jenkinsfile beside it. Each is one word, and each may be run again:
#
#   credentials   (first) the login of NEXUS_URL (NEXUS_USER, NEXUS_PASSWORD) into a netrc file; ENV_FILE's copy as Compose's .env
#   requirements  fetches the files REQUIREMENTS and CUSTOM_REQUIREMENTS of DEV_DIR to where the Dockerfile finds them
#   build         the image, with the login as a secret mount: it is in no layer, argument or history
#   up            starts the new image, and waits until it is ready
#   smoke         trains one build on the sandbox
#   rollback      of a deployment that was begun and has not ended well: the image that ran before
#   clean         removes login, .env and what was fetched
#
# It never migrates a database: a new version that wants that does not get ready, says so, and is rolled back.
set -euo pipefail
umask 077

work=.deploy # of the workspace; nobody else's
netrc=$work/netrc
begun=$work/begun
image=${ORCHESTRATOR_IMAGE:-orchestrator:${BUILD_NUMBER:-latest}}
compose_file=${COMPOSE_FILE:-deploy/compose/compose.yaml}
env_file=$(dirname "$compose_file")/.env # where Compose looks
export ORCHESTRATOR_IMAGE=$image
service=${SERVICE:-serve} # of the profile: serve, serve-celery, serve-docker
ready_url=${READY_URL:-http://127.0.0.1:${PORT:-7860}/health/ready}
before=orchestrator:before

say() { echo "deploy: $*"; }
fail() {
  echo "deploy: $*" >&2
  exit 1
}

compose() { # version 2 where there is one
  if docker compose version >/dev/null 2>&1; then docker compose -f "$compose_file" "$@"; else docker-compose -f "$compose_file" "$@"; fi
}

credentials() {
  case ${NEXUS_URL:-} in
    *@*) fail "NEXUS_URL holds a login, which Jenkins shows to everybody: put it into the credentials NEXUS_CREDS_ID" ;;
    https://?* | http://?*) ;;
    *) fail "NEXUS_URL is no address: write it as in https://nexus.example.com/repository/pypi-all/simple" ;;
  esac
  case "${NEXUS_USER:-}${NEXUS_PASSWORD:-}" in
    *[[:space:]\\]*) fail "the login of NEXUS_CREDS_ID holds a blank or a backslash, which no netrc file can: make a token" ;;
  esac
  clean # what a Jenkins that was killed has left
  mkdir -p "$work"
  host=${NEXUS_URL#*://}
  host=${host%%/*}
  host=${host,,} # pip looks for it in small letters
  # A builtin: no program has the password among its arguments.
  printf 'machine %s login %s password %s\n' "${host%%:*}" "${NEXUS_USER:-}" "${NEXUS_PASSWORD:-}" >"$netrc"
  if [ -n "${ENV_FILE:-}" ]; then cat "$ENV_FILE" >"$env_file"; fi
}

fetch() { # NAME TARGET
  rm -f -- "$2"
  [ -n "$1" ] || return 0
  case $1/ in
    /* | *../*) fail "$1 is no file of DEV_DIR" ;;
  esac
  case ${DEV_DIR:-.} in
    http://* | https://*)
      curl --silent --show-error --fail --location --proto-redir =http,https --netrc-file "$netrc" \
        --output "$2" -- "${DEV_DIR%/}/$1" || fail "$1 could not be fetched from DEV_DIR"
      ;;
    *) cat -- "${DEV_DIR:-.}/$1" >"$2" || fail "there is no $1 in DEV_DIR" ;;
  esac
  chmod 644 "$2" # the builder copies it as it is
  say "fetched $1: $(grep -c '[^[:space:]]' "$2" || true) lines"
}

requirements() {
  fetch "${REQUIREMENTS:-}" jenkins-requirements.txt
  fetch "${CUSTOM_REQUIREMENTS:-}" jenkins-custom-requirements.txt
}

build() {
  set -- --secret "id=netrc,src=$netrc" --build-arg "INDEX_URL=$NEXUS_URL" --tag "$image"
  [ ! -e jenkins-requirements.txt ] || set -- "$@" --build-arg REQUIREMENTS=jenkins-requirements.txt
  [ ! -e jenkins-custom-requirements.txt ] || set -- "$@" --build-arg CUSTOM_REQUIREMENTS=jenkins-custom-requirements.txt
  [ -z "${BASE_IMAGE:-}" ] || set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
  set -- "$@" --build-arg "EXTRAS=${EXTRAS-postgres,celery}" # Compose's own: its serve and MLflow want PostgreSQL
  # shellcheck disable=SC2086 # the words are to be split
  DOCKER_BUILDKIT=1 docker build ${BUILD_OPTIONS:-} "$@" .
  say "built $image"
}

await_ready() { # SECONDS
  limit=$((SECONDS + $1))
  until curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$ready_url"; do
    [ "$SECONDS" -lt "$limit" ] || return 1
    sleep 1
  done
}

up() {
  # Its container, and nobody's memory, says what runs now.
  # A deployment that was begun, and left by a Jenkins that was killed, has noted what ran before it.
  prepare=$(dirname "$compose_file")/prepare
  [ ! -x "$prepare" ] || "$prepare" >/dev/null # makes the secrets that are missing; it prints one of them
  mkdir -p "$work"
  if [ ! -e "$begun" ]; then
    running=$(compose ps -q "$service" | head -n 1)
    id=
    [ -z "$running" ] || id=$(docker inspect --format '{{.Image}}' "$running")
    [ -z "$id" ] || docker tag "$id" "$before"
    echo "$id" >"$begun"
  fi
  compose up -d
  if ! await_ready "${READY_SECONDS:-180}"; then
    say "$image is not ready; its last words:"
    # One that is printed with a token in it opens the UI.
    compose logs --tail 40 "$service" 2>&1 | grep -vi 'token' || true
    fail "$image did not answer 200 on $ready_url within ${READY_SECONDS:-180} s; if it asks for \`orchestrator migrate\`, back up the database and migrate it by hand"
  fi
  say "$image is ready"
}

smoke() { # the sandbox brings a Jenkins, machines and an MLflow of its own: nothing of yours is touched
  export PIP_INDEX_URL=$NEXUS_URL UV_DEFAULT_INDEX=$NEXUS_URL NETRC=$PWD/$netrc
  ${SMOKE:-make demo ARGS=--once} || fail "no build could be trained on the sandbox"
  rm -f -- "$begun"
  say "deployed $image"
}

rollback() {
  [ -e "$begun" ] || return 0
  if [ -z "$(cat "$begun")" ]; then
    compose stop "$service"
    rm -f -- "$begun"
    fail "there is no image to go back to: stopped $image"
  fi
  say "going back to the image before"
  ORCHESTRATOR_IMAGE=$before compose up -d
  await_ready "${READY_SECONDS:-180}" || fail "the image before is not ready either: $ready_url"
  rm -f -- "$begun"
  say "the image before runs again"
}

clean() {
  rm -f -- "$netrc" "$env_file" jenkins-requirements.txt jenkins-custom-requirements.txt
  if [ ! -e "$begun" ]; then rm -rf -- "$work"; fi
}

case ${1:-} in
  credentials | requirements | build | up | smoke | rollback | clean) "$1" ;;
  *) fail "usage: deploy.sh credentials|requirements|build|up|smoke|rollback|clean" ;;
esac
