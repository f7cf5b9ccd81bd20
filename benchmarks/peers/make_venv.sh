#!/bin/sh
# Makes the virtual environment of the peers: benchmarks/peers/make_venv.sh DIR
set -eu
here=$(dirname "$0")
venv=${1:?"usage: $0 DIR (where the virtual environment of the peers goes)"}
${PYTHON:-python3} -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements-no-deps.txt"
"$venv/bin/python" -c "import datasets, fms_acceleration_odm, grain, torchdata"
