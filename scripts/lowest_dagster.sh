#!/usr/bin/env bash
# Makes an environment with the lowest version of Dagster that pyproject.toml allows. All other
# packages come from the project's own environment. Usage: scripts/lowest_dagster.sh PYTHON FOLDER
set -euo pipefail
python=$1
folder=$2

lowest() { sed -nE "s/^ *\"($1)>=([0-9.]+),.*/\2/p" pyproject.toml | head -n 1; }
core=$(lowest dagster)
libraries=$(lowest dagster-postgres)

"$python" -m venv "$folder"
# Packages that are not installed in the new environment are found in the project's.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder"/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
pip=("$folder"/bin/python -m pip install --quiet --disable-pip-version-check --no-deps)
"${pip[@]}" {dagster,dagster-graphql,dagster-pipes,dagster-shared,dagster-webserver}=="$core" \
    {dagster-celery,dagster-postgres}=="$libraries"
echo "Dagster $core in $folder"
