#!/bin/sh
# What the image `postgres` does with its variables; any other command is run as it is, by Redis' user.
set -eu
[ $# -eq 0 ] || exec setpriv --reuid=redis --regid=redis --clear-groups "$@"
run() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
password=$(cat "$POSTGRES_PASSWORD_FILE")
chown postgres "$PGDATA"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  run initdb --username "$POSTGRES_USER" --auth-local trust --auth-host scram-sha-256 >/dev/null
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  run pg_ctl --wait --options "-c listen_addresses=" start >/dev/null
  echo "ALTER ROLE \"$POSTGRES_USER\" PASSWORD '$password'" | run psql --quiet --username "$POSTGRES_USER" --dbname postgres
  run createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
  for file in /docker-entrypoint-initdb.d/*.sql; do
    run psql --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "$file"
  done
  run pg_ctl --wait --mode fast stop >/dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -c "listen_addresses=*"
