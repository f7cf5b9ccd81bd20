#!/usr/bin/env bash
# examples/ray_two_nodes.sh [CONFIG.yaml] [KEY=VALUE]…
# A search on a Ray cluster of two nodes, both on this machine, each with one CPU. Needs the extra ray: pip install -e '.[ray]'
# On two hosts the second `ray start` runs on the other one, with this one's address, and the store is a PostgreSQL database.
set -euo pipefail

config=${1:-examples/search.yaml}
address=127.0.0.1:6399
trap 'kill $(jobs -p); wait' EXIT # ends the two nodes, and no other Ray that may run here

ray start --head --port "${address#*:}" --num-cpus 1 --include-dashboard=false --disable-usage-stats --block &
until ray health-check --address "$address" 2>/dev/null; do sleep 1; done
ray start --address "$address" --num-cpus 1 --block &

cuvee search "$config" "${@:2}" --engine ray --workers 2 "ray.address=$address"
