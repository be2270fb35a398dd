"""Check that the scripts of the working tree produce the same results as those of another commit, bit for bit.

python -m benchmark.same_results BASE [--only METHOD ...] [--set smoke|variants|resume ...] [--keep FOLDER]
                                      [--against REVISION] [--jobs 2]

Runs the same commands in a git worktree of BASE and in the working tree, and compares their output: G and genotype in
weights.pt and weights.best.pt, genotypes, rows of search.jsonl and metrics.jsonl without timings, samples, file names.
Prints one line per command: equal, or the first difference. Exits with 1 if a command differs or fails.

smoke     --preset smoke as a user would run it, two seeds
variants  the variants of each paper, on 64 tiny images, with an evaluator trained for 20 steps
resume    such runs, interrupted in each of their stages and resumed; must equal BASE's uninterrupted run

--keep FOLDER keeps the worktree, BASE's runs, and the new runs that differ; the next call with this FOLDER reuses
BASE's runs. --against BASE tests the comparison itself: a commit must equal itself.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds per process

SMALL = {  # flags of all runs except smoke
    "eagan": """--g-ch 4 --d-ch 4 --z-dim 6 --g-batch 4 --d-batch 4 --n-critic 2 --epoch-batches 4 --population 4
        --rounds 2 --round-epochs 1 --warmup-epochs 1 --search-n 20 --final-n 30 --bn-batches 1 --train-epochs 3
        --eval-every 1 --eval-after 0""",
    "adversarialnas": """--search-g-ch 2 --search-d-ch 2 --g-ch 2 --d-ch 2 --z-dim 6 --n-critic 2 --epoch-batches 4
        --search-batch 4 --g-batch 4 --d-batch 4 --search-epochs 3 --derive-every 3 --search-eval-every 1 --arch-lr 0.01
        --train-epochs 3 --eval-every 1 --candidates 2""",
    "autogan": """--g-ch 4 --d-ch 4 --search-g-ch 4 --search-d-ch 4 --z-dim 6 --g-batch 4 --d-batch 4 --n-critic 2
        --iterations 3 --grow 1,2 --gan-epochs 1 --epoch-batches 8 --ctrl-steps 2 --candidates 3 --beam 2 --reward-n 20
        --derive-epochs 1 --final-n 20 --proxy-n 1 --reset-window 3 --reset-variance 9 --train-epochs 2
        --eval-every 1""",
    "degas": """--search-ch 4 --search-batch 32 --search-epochs 2 --epoch-batches 3 --arch-lr 0.1 --z-dim 6 --g-ch 4
        --d-ch 4 --g-batch 4 --d-batch 4 --n-critic 2 --iters 7""",
}
DATA = "--dataset {tiny16} --size 16 --evaluator compact --eval-n 120 --sample-every 2 --log-every 1"

# Additional flags of the runs, by --phase, separated by semicolons. {tiny16} and {tiny32} are data sets; other braces
# stand for the directory of BASE's run with the flags inside.
VARIANTS = {
    "eagan": {
        "all": """; --seed 1 --ema 0.5 --adam-b1 0.5 --g-lr 1e-3; --objectives fid; --stages g; --stages coupled; --amp;
            --stages d --genotype eagan-g; --dbar plain --dataset {tiny32} --size 32;
            --epoch-batches 0 --d-batch 24 --g-batch 6 --n-critic 1 --ref-n 40 --eval-after 1;
            --genotype eagan-g --d-genotype autogan-d --grad-clip 0.1""",
        "search": """--cycles 2; --no-weight-reset; --selection cars; --objectives is,fid; --objectives fid,size;
            --stages g --mu-plus-lambda; --stages g --mu-plus-lambda --selection cars; --stages g --bn-batches 0;
            --stages g --dbar d_c; --population 7 --rounds 4 --p-crossover 0.9 --p-mutation 0.9;
            --warmup-epochs 0 --init-g eagan-g --init-d autogan-d;
            --stages coupled --init-g adversarialnas-g --init-d eagan-d-stl10""",
        "train": """--genotype adversarialnas-g --d-genotype eagan-d-cifar10 --train-epochs 1;
            --genotype eagan-g --d-genotype eagan-d-stl10 --amp --train-epochs 1; --genotype {}/genotype.json;
            --genotype eagan-g --size 48 --train-epochs 1;
            --genotype adversarialnas-g --d-genotype plain --dataset {tiny32} --size 32 --train-epochs 1""",
        "eval": "--weights {}/weights.pt --g-ch 99; --weights {}/weights.best.pt --objectives fid --seed 1",
    },
    "adversarialnas": {
        "all": """; --seed 1 --ema 0.5 --adam-b1 0.5 --g-lr 1e-3; --search random; --fixed-d sngan; --fixed-d super;
            --epoch-batches 0 --search-batch 24 --d-batch 24 --n-critic 1 --ref-n 40 --eval-after 1;
            --search random --candidates 1 --g-params 2e4; --fixed-d autogan --gumbel log; --d-genotype searched;
            --search random --candidates 3 --amp --d-genotype animation-d; --d-genotype animation-d --amp;
            --size 48 --chunks 2;
            --genotype adversarialnas-g --g-params 2e4 --grad-clip 0.1""",
        "search": """--gumbel log; --gumbel off; --mixed plain; --ref-ema-overwrite; --search-eval-every 0; --amp;
            --fixed-d super --mixed plain;
            --arch-beta1 0.9 --arch-beta2 0.9 --arch-decay 0.1 --tau-max 2 --tau-min 1""",
        "train": """--genotype animation-g --d-genotype animation-d --amp; --genotype mmd-g --train-epochs 1;
            --genotype eagan-g --chunks 2 --train-epochs 1; --genotype {}/genotype.json --d-genotype searched;
            --genotype {}/latest_G.npy --d-genotype {}/latest_D.npy --train-epochs 1""",
        "eval": """--weights {}/weights.pt --g-ch 99;
            --weights {--size 48 --chunks 2}/weights.best.pt --size 48 --seed 1""",
    },
    "autogan": {
        "all": """; --seed 1 --ema 0.5 --adam-b1 0.5 --g-lr 1e-3; --search random --random-n 2 --proxy-n 0; --amp;
            --epoch-batches 0 --d-batch 24 --g-batch 6 --n-critic 1 --ref-n 40 --eval-after 1 --train-epochs 3;
            --search slas --reward fid; --cells 2 --grow 2; --genotype A --size 48 --train-epochs 1""",
        "search": """--search slas; --search random-shared --bn-batches 1; --controller-loss reference; --reward fid;
            --search random-shared --random-n 5 --no-dedupe; --reward is-cost --cost-weight 3;
            --reward is-cost --cost macs; --no-dedupe --candidates 20; --bn-batches 2; --no-dynamic-reset;
            --reset-window 5; --derive-epochs 0 --proxy-n 0; --cells 1 --grow ""; --proxy-n 3 --iterations 5 --grow 2,3;
            --ctrl-batch 2 --entropy-weight 0.1 --baseline-decay 0.5 --ctrl-lr 0.1 --ctrl-hidden 20;
            --cells 4 --dataset {tiny32} --size 32 --grow 1,2,3 --iterations 4""",
        "train": """--genotype B; --genotype C --size 24 --train-epochs 1; --genotype sngan --amp --train-epochs 1;
            --genotype "1 1 2 1 1 1 2 1 1 1 1 2 1 3" --train-epochs 1; --genotype {}/genotype.json""",
        "eval": """--weights {}/weights.pt --g-ch 99;
            --weights {--cells 2 --grow 2}/weights.best.pt --reward fid --seed 1""",
    },
    "degas": {
        "all": """; --seed 1 --adam-b1 0.5 --g-lr 1e-3; --search-size 16 --dataset {tiny32} --size 32;
            --epoch-batches 0 --search-batch 24 --d-batch 24 --g-batch 6 --n-critic 1 --ref-n 40;
            --search-size 32 --normal-ops 7 --lap-levels 2; --n 2 --ema 0.9 --prune-score softmax;
            --random-arch --conditional; --random-arch --conditional --amp --ema 0.9 --log-every 4;
            --random-arch --n 3 --eval-bn running""",
        "search": """--n 2; --normal-ops 7; --z-grad batch; --z-init pca --n 2; --z-init pca --z-grad batch --z-lr 1;
            --loss-reduction sum --w-lr 1e-5 --lap-levels 1; --prune-score softmax; --amp;
            --search-images 16 --search-batch 16""",
        "train": """--random-arch --seed 2; --genotype baseline --iters 4;
            --genotype {}/genotype.json --amp --n-critic 5; --genotype baseline --iters 4 --conditional --size 48""",
        "eval": """--weights {}/weights.pt --g-ch 99; --weights {}/weights.best.pt --eval-bn running --seed 1;
            --weights {--random-arch --conditional}/weights.pt""",
    },
}
EVALUATIONS = "evaluation (untrained); evaluation (training); evaluation (last)"
STAGES = {  # flags of a run: prefixes of the stages to stop it in; a full stop marks the end of a name
    "eagan": {
        "": f"""preparing; stage 1 warm-up; stage 1 round 1/2; stage 1 round 1/2 scoring; stage 1 round 2/2 scoring;
            stage 1, final choice; stage 2 warm-up; stage 2 round 1/2; stage 2 round 1/2 scoring;
            stage 2 round 2/2 scoring; stage 2, final choice; training; {EVALUATIONS}""",
        "--phase search --stages g --mu-plus-lambda --selection cars": "stage 1 round 2/2 scoring",
        "--phase eval --weights {}/weights.pt --g-ch 99": "evaluation.",
    },
    "adversarialnas": {
        "": f"preparing; search.; search evaluation; training; {EVALUATIONS}",
        "--fixed-d super": "search.",
        "--search random": "candidate 1.; candidate 1 scoring; candidate 2.; candidate 2 scoring; training",
        "--phase eval --weights {}/weights.pt --g-ch 99": "evaluation.",
    },
    "autogan": {
        "": f"""preparing; stage 0 iteration 1/3.; stage 0 iteration 1/3 controller; stage 0 iteration 1/3 candidates;
            stage 1 iteration 2/3; stage 2 iteration 3/3.; stage 2 iteration 3/3 controller;
            stage 2 iteration 3/3 candidates; proxy candidates; finalist 2/3; finalist 1/3 scoring; training;
            {EVALUATIONS}""",
        "--search random --random-n 2 --proxy-n 0": "finalist 2/2.",
        "--phase eval --weights {}/weights.pt --g-ch 99": "evaluation.",
    },
    "degas": {
        "": "preparing; search; training; evaluation (untrained); evaluation (last)",
        "--phase search --z-init pca --n 2": "search",
        "--n 2 --ema 0.9 --prune-score softmax": "training",
        "--random-arch --conditional": "training",
        "--preset smoke --epoch-batches 20 --iters 201 --search-images 32": "evaluation (training)",
        "--phase eval --weights {}/weights.pt --g-ch 99": "evaluation.",
    },
}

QUICK = """
import importlib.util, os, runpy, signal, sys, torch, common.metrics, common.run
torch.set_num_threads(1)
common.metrics.COMPACT_STEPS = (20, 20)
for name in ("common.run", "common.ranks"):
    if importlib.util.find_spec(name) and hasattr(importlib.import_module(name), "PROBE_SECONDS"):
        sys.modules[name].PROBE_SECONDS = 0.0
stop, check, seen = sys.argv.pop(1), common.run.Run.check, []
def stopping(run):
    if f"{run.status['stage']}.".startswith(stop):
        seen.append(stop)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
    return check(run)
if stop:
    common.run.Run.check = stopping
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Case:
    """A command. With `stop`, interrupt it in that stage and resume it; it must equal BASE's uninterrupted run."""

    script: str
    kind: str
    flags: str
    stop: str = ""

    def folder(self, runs: Path) -> Path:
        return runs / self.script / (re.sub(r"[^\w.,+-]+", "_", f"{self.flags} {self.stop}").strip("_ ") or "default")

    def given(self) -> list["Case"]:
        """The runs of BASE whose files this one uses."""
        return [Case(self.script, "variants", flags) for flags in re.findall(r"\{(?!tiny)(.*?)\}", self.flags)]

    def words(self, runs: Path) -> list[str]:
        """The command's flags. runs: directory of BASE's runs, next to the data sets."""
        flags = self.flags if self.kind == "smoke" else f"{SMALL[self.script]} {DATA} {self.flags}"
        flags = re.sub(r"\{(tiny\d+)\}", rf"{runs.parent}/\1.npz", flags)
        for case in self.given():
            flags = flags.replace(f"{{{case.flags}}}", str(case.folder(runs) / "run"))
        return shlex.split(flags)


def cases(script: str, kind: str) -> list[Case]:
    if kind == "smoke":
        return [Case(script, kind, f"--preset smoke --seed {seed}") for seed in (0, 1)]
    if kind == "resume":
        return [Case(script, kind, flags, stop) for flags, stops in STAGES[script].items() for stop in listed(stops)]
    phases = {"all": "", "search": "--phase search ", "train": "--phase train ", "eval": "--phase eval "}
    return [Case(script, kind, phases[phase] + x) for phase, flags in VARIANTS[script].items() for x in listed(flags)]


def listed(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split(";")]


def git(*words: object) -> str:
    return subprocess.run(["git", "-C", ROOT, *words], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def worktree(revision: str, folder: Path) -> Path:
    """Check out the revision in the folder."""
    sha = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    tree = folder / f"base-{sha[:10]}"
    if not tree.exists():
        git("worktree", "add", "--quiet", "--detach", "--force", tree, sha)
    return tree


def run(tree: Path, case: Case, words: list[str], folder: Path) -> str:
    """Run the command in the tree; its run directory becomes folder/run. Returns why it failed, or ""."""

    def start(expected: int, stop: str, *words: object) -> str:
        program = [] if case.kind == "smoke" else ["-c", QUICK, stop]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *program, f"{case.script}.py", *map(str, words)]
        try:
            done = subprocess.run(command, cwd=tree, env=env, timeout=LIMIT, **pipes)
        except subprocess.TimeoutExpired:
            return f"failed: timeout after {LIMIT} s"
        if stop and done.returncode == 0:
            return f"failed: not stopped, no second Run.check in a stage whose name starts with {stop!r}"
        told = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        return "" if done.returncode == expected else f"failed with exit code {done.returncode}: {told}"

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [*words, "--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    failed = start(130 if case.stop else 0, case.stop, *words)
    if case.stop and not failed and (why := start(0, "", "--resume", *(folder / "runs").iterdir())):
        failed = f"after resuming: {why}"
    if not failed:
        (made,) = (folder / "runs").iterdir()
        made.rename(folder / "run")
    return failed


def contents(folder: Path) -> dict[str, object]:
    """What must be equal in a run: {file: value}, rows first; None if the file only has to exist."""
    found: dict[str, object] = {}
    files = [f.relative_to(folder) for f in folder.rglob("*") if f.is_file()]
    for file in sorted(files, key=lambda f: (f.suffix != ".jsonl", f)):
        path, name = folder / file, str(file)
        if file.parts[0] == "source" or name.startswith("checkpoint"):  # code may differ; saves depend on timing
            continue
        found[name] = None
        if name in ("search.jsonl", "metrics.jsonl"):
            rows = map(json.loads, path.read_text().splitlines())
            told = ({k: v for k, v in row.items() if k != "t" and not k.startswith("perf/")} for row in rows)
            found[name] = {f"row {i}": row for i, row in enumerate(told, 1)}
        elif name in ("weights.pt", "weights.best.pt"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            found[name] = {key: saved.get(key) for key in ("G", "genotype")}
        elif name == "genotype.json" or file.parts[0] == "genotypes":
            found[name] = json.loads(path.read_text())
        elif file.suffix in (".png", ".npy"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def difference(base: object, new: object, where: str = "") -> str:
    """The first difference of two values, and its place; "" if they are equal bit for bit."""
    if isinstance(base, torch.Tensor) and isinstance(new, torch.Tensor):
        if (base.dtype, base.shape) != (new.dtype, new.shape):
            return f"{where}: {base.dtype} {tuple(base.shape)} != {new.dtype} {tuple(new.shape)}"
        bits = [x.flatten().contiguous().view(torch.uint8).view(-1, x.element_size()) for x in (base, new)]
        other = (bits[0] != bits[1]).any(dim=1).nonzero().flatten().tolist()
        one, two = (x.flatten()[other[:1]].tolist() for x in (base, new))
        return f"{where}: {len(other)} of {base.numel()} values, first {one} != {two}" if other else ""
    if isinstance(base, dict) and isinstance(new, dict):
        pairs = [(base[key], new[key], f"{where} {key}".strip()) for key in base if key in new]
        lacking = [f"{where} {key}: only in base" for key in base if key not in new]
        lacking += [f"{where} {key}: only in new" for key in new if key not in base]
    elif isinstance(base, list | tuple) and type(base) is type(new):
        pairs = [(*both, f"{where}[{i}]") for i, both in enumerate(zip(base, new, strict=False))]
        lacking = [f"{where}: {len(base)} != {len(new)} long"] if len(base) != len(new) else []
    else:
        return "" if base == new or (base != base and new != new) else f"{where}: {base!r:.90} != {new!r:.90}"
    return next(filter(None, (difference(*pair) for pair in pairs)), "".join(lacking[:1]).strip())


def compare(asked: argparse.Namespace, folder: Path) -> int:
    """Run and compare everything in the folder. Returns the exit code."""
    for size in (16, 32):
        rng, labels = np.random.default_rng(0), np.arange(64) % 2
        images = rng.integers(0, 128, (64, size, size, 3)) + 127 * labels[:, None, None, None]
        np.savez(folder / f"tiny{size}.npz", images=images.astype(np.uint8), labels=labels)
    base = worktree(asked.base, folder)
    tree = ROOT if asked.against == "." else worktree(asked.against, folder)
    runs, new = folder / base.name.replace("base", "runs"), Path(tempfile.mkdtemp(prefix="new-", dir=folder))
    failed: dict[Path, str] = {}  # BASE's runs that failed

    def of_base(case: Case) -> None:
        words, done = case.words(runs), case.folder(runs) / "done.json"
        if not done.exists() or json.loads(done.read_text()) != words:
            failed[done.parent] = run(base, case, words, done.parent)
            if not failed[done.parent]:
                done.write_text(json.dumps(words))

    def of_both(case: Case) -> tuple[str, float]:
        began, here, there = time.monotonic(), case.folder(new), Case(case.script, case.kind, case.flags).folder(runs)
        if why := failed.get(there):
            return f"base {why}", 0.0
        try:
            why = run(tree, case, case.words(runs), here) or difference(contents(there / "run"), contents(here / "run"))
        except Exception as error:  # from torch.load, json, ...: unexpected file contents
            why = f"cannot be compared: {error!r:.300}"
        if not why:
            shutil.rmtree(here)
        return why, time.monotonic() - began

    todo = [case for script in asked.only for kind in asked.set for case in cases(script, kind)]
    needed = {c.folder(runs): c for case in todo for c in (*case.given(), Case(case.script, case.kind, case.flags))}
    seconds: dict[tuple[str, str], list[float]] = {}
    bad = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for later in (False, True):  # first those that use no other run's files
            list(pool.map(of_base, [case for case in needed.values() if bool(case.given()) == later]))
        for case, (why, spent) in zip(todo, pool.map(of_both, todo), strict=True):
            bad += bool(why)
            seconds.setdefault((case.script, case.kind), []).append(spent)
            name = f"{case.flags or 'default'}{case.stop and f', stopped in {case.stop!r}'}"
            print(f"{case.script:14} {case.kind:8} {spent:5.1f} s  {why or 'equal'}  <- {name}", flush=True)
    for (script, kind), times in seconds.items():
        print(f"{script:14} {kind:8} {sum(times):5.0f} s in total, {asked.jobs} in parallel, for {len(times)} commands")
    print(f"{len(todo) - bad} of {len(todo)} equal" + f"; new runs that differ: {new}" * bool(bad and asked.keep))
    if not bad:
        shutil.rmtree(new)
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = ["smoke", "variants", "resume"]
    parser.add_argument("base", metavar="BASE", help="git revision")
    parser.add_argument("--only", nargs="+", choices=SMALL, default=list(SMALL), metavar="METHOD", help="default: all")
    parser.add_argument("--set", nargs="+", choices=sets, default=sets, help="default: all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="default: a temporary folder")
    parser.add_argument(
        "--against", default=".", metavar="REVISION", help="revision to compare instead of the working tree"
    )
    parser.add_argument("--jobs", type=int, default=2, help="parallel processes")
    asked = parser.parse_args()
    folder = Path(asked.keep or tempfile.mkdtemp(prefix="same-results-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return compare(asked, folder)
    finally:
        if not asked.keep:
            for tree in folder.glob("base-*"):
                git("worktree", "remove", "--force", tree)
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
