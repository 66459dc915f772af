#!/bin/sh
# Replaces the entrypoint of the official image: creates the database once, then starts the server.
set -eu
PGDATA=/var/lib/postgresql/18/docker
export PGDATA PATH="/usr/lib/postgresql/18/bin:$PATH"
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres /var/lib/postgresql /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 \
        --locale=C.UTF-8 --pwfile=/dev/stdin <<EOF
$POSTGRES_PASSWORD
EOF
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait --options="-c listen_addresses=''" start
    [ "$POSTGRES_DB" = postgres ] || createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait stop
fi
exec "$@" -c listen_addresses='*'
