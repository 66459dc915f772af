#!/bin/sh
# Installs what the image runs into a virtual environment of its own: `deploy/install.sh FOLDER`.
# The Dockerfile calls this, and so does a test, so that what is tested is what is built.
set -eu

folder=${1:?"usage: deploy/install.sh FOLDER"}
cd "$(dirname "$0")/.."
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt '.[production]'
"$folder/bin/pip" check
