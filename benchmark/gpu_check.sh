#!/usr/bin/env bash
# Checks for a machine with a GPU; no network required: tests, speed, a short training run, stop and resume.
#   benchmark/gpu_check.sh [MINUTES=5] [DATASET=shapes]      takes about MINUTES + 10 minutes; DATASET needs labels
set -euo pipefail
minutes=${1:-5} dataset=${2:-shapes} python=${PYTHON:-python3}
[[ $dataset == *[./]* ]] && dataset=$(realpath -m "$dataset") # a path, not a name
cd "$(dirname "$0")/.."

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_check: skipped: torch in $python finds no CUDA device"
    exit 0
fi
"$python" -c 'import torch; print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")'
failed=()

echo "== tests"
if "$python" -c 'import pytest' 2>/dev/null; then
    "$python" -m pytest -m "gpu and not slow" tests/test_gpu.py || failed+=(tests)
else
    echo "skipped: pytest is not installed"
fi

echo "== speed"
"$python" -m benchmark.steps || failed+=(speed)

echo "== training, $minutes minutes"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
every=2 # epochs, each of 250 G updates on 50,000 images, or 50 on shapes
[[ $dataset == shapes ]] && every=10

# train STOP_AFTER ARGUMENTS...: run eagan.py, send SIGINT after STOP_AFTER, expect exit code 130
train() {
    local code=0
    timeout --foreground --preserve-status --signal INT --kill-after 2m "$1" "$python" eagan.py "${@:2}" | tee -i "$log" || code=$?
    ((code == 130)) || { echo "gpu_check: training exited with code $code, expected 130"; return 1; }
}
step() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["step"])' "$run/status.json"; }

if train "${minutes}m" --phase train --genotype eagan-g --dataset "$dataset" --evaluator compact --amp \
    --eval-after 0 --eval-every "$every" --eval-n 10000 --save-minutes 1; then
    run=$(sed -n 's/^resume with: .* --resume //p' "$log")
    before=$(step)
    echo "== resume for 40 seconds"
    if train 40s --resume "$run" && (($(step) > before)); then
        echo "gpu_check: resumed at step $before, stopped at step $(step); to continue: $python eagan.py --resume $run"
    else
        failed+=(resume)
    fi
else
    failed+=(training)
fi

if ((${#failed[@]})); then
    echo "gpu_check: FAILED: ${failed[*]}"
    exit 1
fi
echo "gpu_check: all passed"
