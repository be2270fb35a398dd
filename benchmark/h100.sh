#!/usr/bin/env bash
# Checks on a machine with a GPU, without network, in three parts of under eight minutes each: what takes longer is cut off.
#   benchmark/h100.sh a                         CUDA tests in parallel; speed of every loop; NCCL with one process
#   benchmark/h100.sh b [DATASET] [INCEPTION]   every op against float64 on the CPU; every loop under the profiler, by turns
#                                               without TF32, with cudnn.benchmark, in a graph, compiled; Inception in each
#                                               precision: speed, and how much the FID of 2,000 images moves
#   benchmark/h100.sh c [DATASET] [INCEPTION]   the four scripts side by side: begun on the CPU, stopped, taken up on the GPU,
#                                               killed, resumed; the FID must fall, with INCEPTION the FID-768
# DATASET: real images, a folder, .zip or .npz; INCEPTION: Inception's weights up to Mixed_6e or complete.
# Needs what requirements.txt lists, apart from textual; pytest and pytest-xdist for the tests. PYTHON chooses the interpreter;
# DEVICE=cpu rehearses all of it without a GPU, with small networks.
set -uo pipefail
part=${1:-} dataset=${2:-shapes} inception=${3:-} python=${PYTHON:-python3} device=${DEVICE:-cuda}
[[ $part == [abc] ]] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
[[ $dataset == *[./]* ]] && dataset=$(realpath -m "$dataset") # a path, not a name
[[ $inception ]] && inception=$(realpath -m "$inception")
cd "$(dirname "$0")/.."
if [[ $device == cuda ]]; then
    small=() sizes=() images=()
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "h100: no CUDA device for $python"; exit 1; }
    "$python" -c 'import torch; print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")'
else
    small=(--device "$device" --preset smoke) sizes=(--device "$device" --channels 8 16 --sides 4 8) images=(--images 20)
fi
export OMP_NUM_THREADS=1 # many processes; the loops wait for the GPU, not for the CPU's threads
export GAN_NAS_GPU_TESTS=$device
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

# check NAME COMMAND...: run it, say how long it took, remember a failure
check() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name (exit code $?, where 124 means cut off)")
    echo "== $name: $((SECONDS - began)) s"
}

# compiled METHOD...: the compiled training of each, side by side: compiling takes minutes, and many cores
compiled() {
    local method pair pids=() code=0
    for method in "$@"; do
        timeout 90 "$python" -m benchmark.steps "$method" "${small[@]}" --seconds 1 --ways amp-compile >"$work/$method.log" 2>&1 &
        pids+=("$!:$method")
    done
    for pair in "${pids[@]}"; do
        wait "${pair%%:*}" || code=1
        tail -n 1 "$work/${pair#*:}.log"
    done
    return "$code"
}

# whole METHOD: a run that begins on the CPU, is stopped, goes on on the GPU, is killed, and is resumed to its end
whole() {
    local method=$1 runs=$work/$1 run pid code=0 threads=1
    local words=(--preset smoke --dataset "$dataset" --size 32 --runs-dir "$runs" --data-dir "$work/data" --save-minutes 0.1)
    if [[ $inception ]]; then # few images of which the CPU, too, has soon made the features
        words+=(--evaluator inception --inception-weights "$inception" --fid-dims 768 --ref-n 800 --eval-n 800)
        [[ $method == eagan ]] && words+=(--objectives fid,size)
        [[ $method == autogan ]] && words+=(--reward fid)
        threads=4
    fi
    OMP_NUM_THREADS=$threads timeout --signal KILL 150 "$python" "$method.py" "${words[@]}" --device cpu &
    pid=$!
    while kill -0 "$pid" 2>/dev/null && ! grep -qs '"step": [1-9]' "$runs"/*/status.json; do sleep 1; done
    kill -INT "$pid"
    wait "$pid" || code=$?
    ((code == 130)) || { echo "$method: exit code $code after SIGINT, expected 130"; return 1; }
    run=$(echo "$runs"/*)
    timeout --signal KILL 20 "$python" "$method.py" --resume "$run" --device "$device"
    timeout 240 "$python" "$method.py" --resume "$run" --device "$device" || return 1
    "$python" - "$run" <<'END'
import json, sys
rows = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")]
fid = {row["eval/what"]: row["eval/fid"] for row in rows if "eval/fid" in row}
print(f"{sys.argv[1].split('/')[-1]}: FID untrained {fid['untrained']:.2f}, at the end {fid['last']:.2f}")
sys.exit(not fid["last"] < fid["untrained"])
END
}

case $part in
a)
    check "CUDA tests" timeout 220 "$python" -m pytest -p no:cacheprovider -n 8 --dist worksteal -m "gpu and not slow" tests/test_gpu.py
    check "speed" timeout 190 "$python" -m benchmark.steps "${small[@]}" --no-compile --seconds 1
    check "NCCL" timeout 60 "$python" -m torch.distributed.run --nproc-per-node 1 eagan.py --preset smoke --device "$device" --runs-dir "$work/runs" --data-dir "$work/data"
    ;;
b)
    check "ops" timeout 80 env OMP_NUM_THREADS=8 "$python" -m benchmark.ops "${sizes[@]}"
    check "by turns" timeout 260 "$python" -m benchmark.steps eagan autogan degas adversarialnas "${small[@]}" --seconds 0.5 --profile --ways fp32 tf32-off cudnn-benchmark graph amp-graph
    check "compiled" compiled eagan autogan degas adversarialnas
    if [[ $inception ]]; then
        check "Inception" timeout 40 "$python" -m benchmark.metrics --weights "$inception" --precisions "$dataset" "${images[@]}"
    else
        echo "== Inception: not run without its weights"
    fi
    ;;
c)
    pids=()
    for method in eagan adversarialnas autogan degas; do
        whole "$method" >"$work/$method.log" 2>&1 &
        pids+=("$!:$method")
    done
    for pair in "${pids[@]}"; do
        wait "${pair%%:*}" || { failed+=("${pair#*:}"); tail -n 30 "$work/${pair#*:}.log"; }
        tail -n 1 "$work/${pair#*:}.log"
    done
    ;;
esac
if ((${#failed[@]})); then
    printf 'h100: FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "h100: all passed"
