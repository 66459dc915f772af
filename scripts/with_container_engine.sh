#!/usr/bin/env bash
# Runs a command with its own container engine: `scripts/with_container_engine.sh COMMAND…`. Needs
# Debian and root. dockerd, Compose and the base images come from Debian's packages, so no image
# registry is needed. The engine's files are in one temporary folder, which is removed at the end.
# If no engine can be started, the script prints SKIPPED and ends with 0, and nothing was tested.
set -euo pipefail

skip() { echo "SKIPPED: $*"; exit 0; }

[ "$(id -u)" -eq 0 ] || skip "a container engine of its own needs root"
command -v apt-get >/dev/null || skip "the engine is installed from Debian's packages"
export DEBIAN_FRONTEND=noninteractive
if ! command -v dockerd >/dev/null || ! command -v mmdebstrap >/dev/null; then
    echo "installing docker.io, mmdebstrap, iptables and iproute2 of Debian; they stay"
    apt-get update -qq
    # A service that cannot start here must not stop the installation.
    apt-get install -y -qq --no-install-recommends docker.io mmdebstrap iptables iproute2 >/dev/null \
        || skip "docker.io and mmdebstrap cannot be installed"
fi

# The engine changes the network of this machine, and the script restores it at the end. So no other
# engine may run, and this script may run only once at a time.
exec 9> /var/lock/batch_pipeline_container_engine
flock --nonblock 9 || skip "this script runs already"
[ ! -e /sys/class/net/docker0 ] || skip "docker0 is there: another engine runs on this machine"
rules=$(iptables-save) || skip "the rules of this network cannot be read"
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)

folder=$(mktemp -d /var/tmp/container-engine-XXXXXX)
daemon=
clean() {
    if [ -n "$daemon" ]; then
        docker ps -aq | xargs -r docker rm --force --volumes >/dev/null
        docker network prune --force >/dev/null
        kill "$daemon" && wait "$daemon" || true
    fi
    ip link delete docker0 2>/dev/null || true
    iptables-restore <<< "$rules"
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    rm -rf "$folder"
}
trap clean EXIT
export DOCKER_HOST=unix://$folder/docker.sock DOCKER_CONFIG=$folder/config
export DOCKER_BUILDKIT=0 COMPOSE_BAKE=false  # Debian's engine comes without buildx

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
newer=forky  # the first Debian with PostgreSQL 18, and with a recent Compose

# Only the program of Compose is taken from there, because the one in Debian 12 is too old.
mkdir -p "$folder"/apt/{lists,cache}/partial "$folder/config/cli-plugins"
echo "deb [signed-by=$keys check-valid-until=no] $mirror $newer main" > "$folder/apt/sources.list"
apt=(-qq -o "Dir::Etc::sourcelist=$folder/apt/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache")
apt-get "${apt[@]}" update
(cd "$folder" && apt-get "${apt[@]}" download docker-compose 2>/dev/null)
dpkg-deb -x "$folder"/docker-compose_*.deb "$folder/compose"
cp "$folder/compose/usr/libexec/docker/cli-plugins/docker-compose" "$folder/config/cli-plugins/"

dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/docker.pid" \
    --host "$DOCKER_HOST" > "$folder/dockerd.log" 2>&1 &
daemon=$!
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null 2>&1 || { tail -5 "$folder/dockerd.log"; daemon=; skip "dockerd does not start"; }

base() { # tag, Debian, packages, then options of `docker import`
    local tag=$1 debian=$2 packages=$3
    shift 3
    echo "making $tag of Debian $debian"
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="cp -a $folder/add/. \"\$1\"" \
        "$debian" - "$mirror" | docker import "$@" - "$tag" >/dev/null
}

# A network may need certificates that only this machine has, so the build gets them, too.
mkdir -p "$folder/add/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$folder/add/etc/ssl/certs/"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$folder/add/etc/pip.conf"
base python:3.11-slim bookworm python3-venv,tzdata --change 'CMD ["python3"]'
# Like the official image, it answers other containers.
base redis:8-alpine bookworm redis-server,redis-tools \
    --change 'ENTRYPOINT ["sh", "-c", "exec \"$@\" --protected-mode no", "-"]'
mkdir -p "$folder/add/usr/local/bin"
cp "$(dirname "$0")/postgres_entrypoint.sh" "$folder/add/usr/local/bin/"
base pgvector/pgvector:pg18 "$newer" postgresql-18,postgresql-18-pgvector \
    --change 'ENTRYPOINT ["/usr/local/bin/postgres_entrypoint.sh"]'

"$@"
