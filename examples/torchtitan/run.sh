#!/usr/bin/env bash
# Steer a toy llama in torchtitan's own trainer on a CPU, stop it inside an interval, resume it, and
# compare: bash examples/torchtitan/run.sh 0.2.2|0.3.0 CORPUS OUT
# torchtitan has an environment of its own (OUT/venv), because it needs other versions than cuvee's tests.
# PyPI's torch for Linux brings CUDA along. With PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, pip takes the
# small one.
set -euo pipefail
version=$1
export CORPUS=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
venv=${VENV:-$out/venv}
cd "$(dirname "$0")"
if ! "$venv/bin/python" -c 'import cuvee, torchtitan' 2>/dev/null; then # also after an install that was stopped
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q ../.. "torchtitan==$version" 'torch==2.13.0' 'datasets<4.8' triton 'wandb<0.23'
fi

case $version in
  0.2.*) options=(--experimental.custom_import steered_0_2 --model.name steered --model.flavor toy
    --checkpoint.no-last_save_model_only --job.dump_folder) ;;
  *) options=(--module steered_0_3 --config steered --training.disable_cuda_graphs --dump_folder) ;;
esac
train() {
  "$venv/bin/python" on_cpu.py "${options[@]}" "$out/$1" --training.steps 16 --training.seq_len 64 \
    --training.local_batch_size 4 --training.mixed_precision_param float32 \
    --optimizer.implementation for-loop --metrics.log_freq 1 --debug.seed 1 \
    --checkpoint.enable --checkpoint.interval 7 >"$out/$1.log" 2>&1
  grep -E '^[0-9]+ \{' "$out/$1.log" >"$out/$1.mixtures"
  sed 's/\x1b\[[0-9;]*m//g' "$out/$1.log" | grep -oE 'step: +[0-9]+ +loss: +[0-9.]+ +grad_norm: +[0-9.]+' | tail -9 >"$out/$1.losses"
}

train whole
mkdir -p "$out/again/checkpoint"
cp -r "$out/whole/checkpoint/step-7" "$out/again/checkpoint"
train again
cat "$out/whole.mixtures"
diff "$out/whole.mixtures" "$out/again.mixtures"
diff "$out/whole.losses" "$out/again.losses"
echo "torchtitan $version: resumed at step 7 of 16, with equal mixtures and losses"
