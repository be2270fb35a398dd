"""The smoke preset of a method does all phases for real: python .ci/smoke_check.py METHOD, a minute or so.

Its run ends with a generator that beats the untrained one, and noise by a wide margin (an untrained generator may score
well by chance), with a genotype that --genotype takes, and with samples.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

method = sys.argv[1]
with tempfile.TemporaryDirectory() as folder:
    words = [sys.executable, f"{method}.py", "--preset", "smoke", "--runs-dir", f"{folder}/runs"]
    start = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    seconds = time.monotonic() - start
    (run,) = Path(folder, "runs").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {row["eval/what"]: row for row in rows if "eval/fid" in row}
    untrained, last = (scores[what]["eval/fid"] for what in ("untrained", "last"))
    noise = scores["untrained"]["noise/fid"]
    fids = f"noise {noise:.1f}, untrained {untrained:.1f}, at the end {last:.1f}"
    print(f"{method}: smoke in {seconds:.0f} s, FID(compact) of {fids}", flush=True)
    assert last < min(untrained, noise / 2)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    for name in ("search.jsonl", "result.json", "weights.pt", "log.txt"):
        assert (run / name).stat().st_size, name
    assert list((run / "samples").glob("*.png"))
    words += ["--genotype", str(run / "genotype.json"), "--dry-run"]
    assert subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
