#!/usr/bin/env bash
# Checks on a machine with a GPU, without network, in three parts of under eight minutes each:
#   benchmark/h100.sh a                         CUDA tests in parallel; speed of every loop; NCCL with one process
#   benchmark/h100.sh b                         every op against float64; compiled training loops
#   benchmark/h100.sh c [DATASET] [INCEPTION]   the four scripts side by side: stop, kill, resume, a checkpoint from a CPU
# Needs what requirements.txt lists, apart from textual; pytest and pytest-xdist for the tests. PYTHON chooses the interpreter.
set -uo pipefail
part=${1:-} dataset=${2:-shapes} inception=${3:-} python=${PYTHON:-python3}
[[ $part == [abc] ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
[[ $dataset == *[./]* ]] && dataset=$(realpath -m "$dataset") # a path, not a name
[[ $inception ]] && inception=$(realpath -m "$inception")
cd "$(dirname "$0")/.."
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "h100: no CUDA device for $python"; exit 1; }
"$python" -c 'import torch; print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")'
export OMP_NUM_THREADS=1 # many processes; the loops wait for the GPU, not for the CPU's threads
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

# check NAME COMMAND...: run it, say how long it took, remember a failure
check() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - began)) s"
}

# interrupt SIGNAL SECONDS COMMAND...: send SIGNAL to the command after so many seconds; its exit code
interrupt() {
    timeout --signal "$1" --kill-after 60 --preserve-status "$2" "${@:3}"
}

# whole METHOD: a run that begins on the CPU, is stopped, goes on on the GPU, is killed, and is resumed to its end
whole() {
    local method=$1 runs=$work/$1 run code=0
    local words=(--preset smoke --dataset "$dataset" --size 32 --runs-dir "$runs" --data-dir "$work/data" --save-minutes 0.1)
    [[ $inception ]] && words+=(--evaluator inception --inception-weights "$inception" --fid-dims 768)
    interrupt INT 25 "$python" "$method.py" "${words[@]}" --device cpu || code=$?
    ((code == 130)) || { echo "$method: exit code $code after SIGINT, expected 130"; return 1; }
    run=$(echo "$runs"/*)
    interrupt KILL 20 "$python" "$method.py" --resume "$run" --device cuda
    "$python" "$method.py" --resume "$run" || return 1
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
    check "CUDA tests" "$python" -m pytest -p no:cacheprovider -n 8 --dist worksteal -m "gpu and not slow" tests/test_gpu.py
    check "speed" "$python" -m benchmark.steps --no-compile --seconds 2
    check "NCCL" "$python" -m torch.distributed.run --nproc-per-node 1 eagan.py --preset smoke --runs-dir "$work/runs" --data-dir "$work/data"
    ;;
b)
    check "ops" "$python" -m benchmark.ops
    check "compiled" "$python" -m benchmark.steps --compile --seconds 2
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
