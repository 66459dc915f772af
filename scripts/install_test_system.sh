#!/usr/bin/env bash
# Installs the system programs that tests need: Redis, RabbitMQ, PgBouncer, Prometheus, `ip` for
# network namespaces, a browser, shells for tests of completion, Tesseract, Compose (to read its
# file; no engine is needed), and the init that engines give to containers. For Debian and Ubuntu,
# as root. On other systems install them by hand, or the tests that need them are skipped.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v rabbitmq-server >/dev/null || missing+=(rabbitmq-server)
command -v pgbouncer >/dev/null || missing+=(pgbouncer)
command -v ip >/dev/null || missing+=(iproute2)
command -v chromium >/dev/null || missing+=(chromium)
command -v zsh >/dev/null || missing+=(zsh)
command -v fish >/dev/null || missing+=(fish)
command -v tesseract >/dev/null || missing+=(tesseract-ocr tesseract-ocr-eng)
command -v prometheus >/dev/null || missing+=(prometheus)
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v tini-static >/dev/null || missing+=(tini)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "not installed, and this is not Debian as root: ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Keeps services from starting by themselves: tests start what they need.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
