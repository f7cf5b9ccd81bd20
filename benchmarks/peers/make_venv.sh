#!/bin/sh
# Makes the virtual environment of the peers: benchmarks/peers/make_venv.sh DIR
set -eu
here=$(dirname "$0")
venv=${1:?"usage: $0 DIR (where the virtual environment of the peers goes)"}
${PYTHON:-python3} -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
# fms-acceleration asks for numpy < 2 but runs with 2.1; its other pins would bring a CUDA build of torch.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements-no-deps.txt"
"$venv/bin/python" -c "import datasets, grain, torchdata, peft, accelerate"
