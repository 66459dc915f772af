#!/bin/sh
# Installs what the image runs, in two steps. After a change of a source file, only the second step
# runs again. The Dockerfile calls this, and so does a test.
#
#   deploy/install.sh dependencies FOLDER EXTRA   a virtual environment, without our own code
#   deploy/install.sh package FOLDER TARGET       our code, to be copied over that environment
set -eu

usage="usage: deploy/install.sh dependencies FOLDER EXTRA | package FOLDER TARGET"
step=${1:?"$usage"} folder=${2:?"$usage"} third=${3:?"$usage"}
cd "$(dirname "$0")/.."

# Only the build needs pip, so pip has an environment of its own.
tools="$folder-tools"
[ -x "$tools/bin/pip" ] || python3 -m venv "$tools"
pip="$tools/bin/pip --python $folder/bin/python --disable-pip-version-check --quiet"

case $step in
dependencies)
    python3 -m venv --without-pip "$folder"
    # There is no code yet, so this installs the dependencies in pyproject.toml and an empty package.
    $pip install --no-compile -c constraints.txt ".[$third]"
    $pip check
    # These source maps of the UI are only needed by people who change Dagster itself.
    find "$folder" -path '*/dagster_webserver/*' -name '*.map' -delete
    # Some wheels contain debug information. Libraries that were bundled into wheels stay as they are.
    if command -v strip >/dev/null; then
        find "$folder" -name '*.so' -not -path '*.libs/*' -exec strip --strip-debug {} +
    fi
    # Compiles the modules that our processes import (a third of all modules). On a read-only file system,
    # bytecode cannot be stored later, so each process would have to compile them again.
    PYTHONDONTWRITEBYTECODE='' "$folder/bin/python" - <<'PYTHON'
import alembic.command, av, dagster, dagster._cli, dagster._daemon.cli, dagster._grpc.server
import dagster._core.workspace.autodiscovery, dagster_postgres
import dagster_webserver.app, dagster_webserver.cli, grpc_health.v1.health
import httpcore, httpx, httpx2, jinja2, langcodes, numpy.typing, ollama, openai
import pgvector.psycopg, pgvector.sqlalchemy, PIL.Image, PIL.ImageCms, PIL.ImageOps, PIL.ImageStat
import pillow_heif, platformdirs, prometheus_client, psutil, psycopg, pydantic_settings
import rich.progress, rich.table, sqlalchemy.orm, structlog
import sqlalchemy.dialects.postgresql.psycopg, sqlalchemy.dialects.postgresql.psycopg2
from importlib import import_module
from importlib.util import find_spec

# Modules of extras, such as the client of Kubernetes: every pod would need 2 s to compile that one.
for module in ("dagster_aws.s3", "dagster_k8s", "redis", "s3fs"):
    if find_spec(module.partition(".")[0]):
        import_module(module)
PIL.Image.init()  # imports its formats
PYTHON
    ;;
package)
    $pip install --no-deps --no-compile --prefix "$third" .
    "$folder/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$third/lib"
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
