"""Does AdversarialNAS's found generator train worse than a random one, because of its channels or its learning rate?

python -m benchmark.found_training run --images cifar10_train.npz     rows to benchmark/results/found-training.jsonl
python -m benchmark.found_training table                              a Markdown table of them

Trains the generators of both arms of `benchmark.evidence` again, from scratch, each time with one thing changed:
  as in the evidence     about 200,000 parameters each, --g-lr 5e-4 (rows of benchmark/results/evidence.jsonl)
  the same channels      the found generator with as many channels as the random one of its seed has
  lower --g-lr           both with 2e-4
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import adversarialnas as nas
from benchmark.evidence import RESULTS as EVIDENCE
from benchmark.evidence import ROOT, TRAIN, UPDATES, Arm, rows, write
from common.report import comparison, interval_cell
from common.run import git_state

RESULTS = ROOT / "benchmark" / "results" / "found-training.jsonl"
EVERY = "as in the evidence"


def channels_of(genotype: dict) -> int:
    """Channels of the generator that the evidence trained for a genotype."""
    args = nas.Args(**{**nas.PRESETS["smoke"], **TRAIN["adversarialnas"], "size": 32})
    return nas.g_shape(args, genotype["G"])[0]


def cases() -> Iterator[tuple[str, dict, dict]]:
    """(what is changed, row of the evidence, flags) of every training."""
    evidence = [row for row in rows(EVIDENCE) if row["method"] == "adversarialnas"]
    random = {row["seed"]: row for row in evidence if row["arm"] == "random"}
    for row in sorted(evidence, key=lambda row: (row["seed"], row["arm"])):
        if row["arm"] == "found":
            yield "the same channels", row, {"g_params": 0.0, "g_ch": channels_of(random[row["seed"]]["genotype"])}
        yield "lower --g-lr", row, {"g_lr": 2e-4}


def run(asked: argparse.Namespace) -> None:
    done = {(row["changed"], row["arm"], row["seed"]) for row in rows(asked.results)}
    for changed, row, flags in cases():
        if (changed, row["arm"], row["seed"]) in done:
            continue
        asked.scale = row["scale"]
        with tempfile.TemporaryDirectory() as folder:
            arm = Arm(argparse.Namespace(**{**vars(asked), "work": Path(folder)}), "adversarialnas", row["seed"])
            arm.base["data_dir"] = asked.work / "data"
            path = Path(folder, "genotype.json")
            path.write_text(json.dumps(row["genotype"]), "utf-8")
            made, scores, seconds = arm.train(path, UPDATES, **flags)
            config = json.loads((made / "config.json").read_text("utf-8"))
        found = {"experiment": "found training", "changed": changed, "arm": row["arm"], "seed": row["seed"]}
        found |= {"fid": scores["fid"], "is": scores["is"], "params": config["params"]["G"], "flags": flags}
        found |= {"train_s": round(seconds, 1), "scale": row["scale"], "device": config["device"]}
        found |= {"git": git_state(ROOT)["sha"], "torch": torch.__version__, "command": sys.orig_argv[1:]}
        print(json.dumps(write(asked.results, found)), flush=True)


def table(found: list[dict]) -> list[str]:
    """Markdown lines: FID(compact) of both arms in each case, and the interval of their difference."""
    evidence = [row for row in rows(EVIDENCE) if row["method"] == "adversarialnas"]
    lines = ["| | found | random | 95 % interval of the difference |", "|---|---|---|---|"]
    for changed in (EVERY, "the same channels", "lower --g-lr"):
        scores = {}
        for arm in ("found", "random"):
            of_evidence = changed == EVERY or (changed == "the same channels" and arm == "random")
            given = evidence if of_evidence else [row for row in found if row["changed"] == changed]
            mine = sorted((row for row in given if row["arm"] == arm), key=lambda row: row["seed"])
            scores[arm] = [row["fid"] for row in mine]
        if min(map(len, scores.values())) < 2:
            lines.append(f"| {changed} | not run | | |")
            continue
        told = [
            ", ".join(f"{x:.2f}" for x in scores[arm]) + f": **{statistics.mean(scores[arm]):.2f}**" for arm in scores
        ]
        c = comparison(scores["found"], scores["random"])
        lines.append(f"| {changed} | {told[0]} | {told[1]} | {interval_cell(c)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--images", type=Path, help=".npz of the evidence's images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder with the evidence's cache")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.what == "table":
        print("\n".join(table(rows(asked.results))))
        return
    if asked.images is None:
        parser.error("--images: required")
    for name in ("images", "work", "results"):
        setattr(asked, name, Path(os.path.abspath(getattr(asked, name))))
    torch.set_num_threads(1)
    run(asked)


if __name__ == "__main__":
    main()
