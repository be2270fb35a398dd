"""Does a search find an optimum that was planted? Minutes on a CPU, five seeds each; a finished row is not done again.

python -m benchmark.planted run [EXPERIMENT ...]      rows to benchmark/results/planted.jsonl
python -m benchmark.planted table                     a Markdown table of them

  autogan          the controller on a bandit whose reward is a sum of known rewards of the tokens: tokens of which the
                   policy prefers the best; best reward seen, against as many random draws
  degas            images made by the supernet itself with one operation a connection: connections where alpha finds it;
                   weights and latents are held fixed
  adversarialnas   Super-G with one trained operation an edge among untrained ones: normal edges where alpha finds it
  eagan            selection and variation on known IS and FID: best FID seen, against as many random genotypes
  preference       no optimum: AdversarialNAS on --images with G's learning rate 0 and 5e-4: normal edges led by a 5x5
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

import adversarialnas as nas
import autogan
import degas
import eagan
from benchmark.evidence import ROOT, rows, write
from common import gan
from common.data import Dataset
from common.files import load_tensors, stream
from common.ranks import Ranks
from common.run import git_state

RESULTS = ROOT / "benchmark" / "results" / "planted.jsonl"
CPU = torch.device("cpu")
NORMAL = ("1->3", "2->3", "1->4", "2->4", "3->4")  # the edges of AdversarialNAS's G with seven operations


def job_of(args: object, images: Tensor) -> gan.Job:
    return gan.Job(args, Ranks(CPU), None, Dataset("planted", images, None, "0"))


def controller(seed: int, _images: Path) -> dict:
    """AutoGAN's controller, its 2,700 steps of the paper's schedule, on 14 tokens of three cells."""
    args = autogan.Args(seed=seed)
    decided = [options for _, options in autogan.to_decide(range(3))]
    generator = stream(seed, "planted rewards")
    rewards = [0.1 * torch.randn(len(options), generator=generator) for options in decided]
    reward = lambda vector: sum(r[i].item() for r, i in zip(rewards, vector, strict=True))  # noqa: E731
    net = gan.seeded(
        job_of(args, torch.zeros(2, 3, 32, 32)), lambda: autogan.Controller(list(map(len, decided))), "bandit"
    )
    optimizer, baseline, seen = torch.optim.Adam(net.parameters(), args.ctrl_lr, betas=(0.0, 0.9)), None, []
    for step in range(2700):
        drawn = net(1, stream(seed, "draw", step), [])
        scores = torch.tensor([reward(x.vector) for x in drawn.candidates])
        loss, baseline = autogan.controller_loss(args, scores, drawn, baseline)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += scores.tolist()
    policy = net(64, stream(seed, "policy"), []).policy
    right = sum(int(p.mean(0).argmax() == r.argmax()) for p, r in zip(policy, rewards, strict=True))
    random = [reward(x.vector) for x in autogan.uniform(args, len(seen), "random")]
    gap = (max(seen) - max(random)) / statistics.stdev(random)
    return {
        "found": right,
        "of": len(decided),
        "chance": sum(1 / len(o) for o in decided),
        "gap_sd": gap,
        "evaluations": len(seen),
    }


def teacher(seed: int, _images: Path) -> dict:
    """DEGAS's alpha, 300 steps on 64 images that its supernet makes with the operations of a random genotype."""
    sizes = dict(size=16, search_size=16, search_ch=16, z_dim=32, search_images=64, search_batch=32, lap_levels=2)
    args = degas.Args(seed=seed, arch_lr=1e-2, **sizes)
    s = degas.Search(job_of(args, torch.zeros(64, 3, 16, 16, dtype=torch.uint8)))
    planted, generator = {}, stream(seed, "planted ops")
    for c in s.alpha.space.connections:
        ops = s.alpha.space.ops(c)
        planted[c.name] = int(torch.randint(len(ops), (1,), generator=generator))
    one_hot = {name: torch.eye(len(row))[planted[name]] for name, row in s.alpha.probabilities().items()}
    with torch.no_grad():
        batches = [(z, s.net(z, one_hot)) for z in s.Z.split(32)]
    for step in range(300):
        z, images = batches[step % 2]
        with gan.frozen(s.net):
            loss = degas.reconstruction_loss(s.net(z, s.alpha.probabilities()), images, 2)
            gan.update(job_of(args, images), s.alpha, s.a_opt, loss)
    found = {name: int(p.argmax()) for name, p in s.alpha.probabilities().items()}
    chance = sum(1 / len(row) for row in one_hot.values())
    return {"found": sum(found[name] == k for name, k in planted.items()), "of": len(planted), "chance": chance}


def nas_run(seed: int, folder: Path, images: Path | str, **flags: object) -> Path:
    """A small run of AdversarialNAS, to its end; its directory."""
    small = dict(
        search_g_ch=16, search_d_ch=12, search_batch=32, epoch_batches=20, derive_every=20, search_eval_every=0
    )
    small |= dict(size=32, n_critic=1, ema=0.99, arch_lr=3e-3, evaluator="compact", preset="smoke", eval_n=100)
    small |= dict(seed=seed, device="cpu", runs_dir=folder / "runs", data_dir=folder / "data", sample_every=10**9)
    before = set((folder / "runs").glob("*"))
    nas.main(nas.Args(**{**nas.PRESETS["smoke"], **small, "dataset": str(images), **flags}))
    (run,) = set((folder / "runs").iterdir()) - before
    return run


def normal_edges(run: Path) -> list[dict[str, float]]:
    """The final probabilities of the 15 normal edges of G, in order."""
    last = rows(run / "search.jsonl")[-1]["probabilities"]["G"]
    return [p for p in last.values() if "skip_connect" in p]


def trained_ops(seed: int, _images: Path | None, gumbel: str = "prob") -> dict:
    """AdversarialNAS's search, 100 steps on shapes: Super-G has the weights of a random generator that was trained for
    300 updates; the other operations are as initialised, and all of G's weights are held fixed."""
    genotype = nas.random_genotype(nas.G_SPACE, nas.random.Random(seed))
    names = [edge.name for edge in nas.G_SPACE.edges]
    planted = [op for row in genotype for name, op in zip(names, row, strict=True) if name in NORMAL]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "g.json").write_text(json.dumps({"method": "adversarialnas", "G": genotype}))
        training = dict(
            phase="train", genotype=str(folder / "g.json"), g_ch=16, d_ch=16, train_epochs=15, eval_every=15
        )
        weights = load_tensors(nas_run(seed, folder, "shapes", **training) / "weights.pt")["G"]

        class Trained(nas.Supernets):
            def __init__(self, job: gan.Job) -> None:
                super().__init__(job)
                self.G.load_state_dict(weights, strict=False)

        with patch.object(nas, "Supernets", Trained):
            search = dict(phase="search", search_epochs=6, g_lr=0.0, d_lr=5e-4, gumbel=gumbel)
            edges = normal_edges(nas_run(seed, folder, "shapes", **search))
    found = [max(p, key=p.get) for p in edges]
    right = sum(a == b for a, b in zip(found, planted, strict=True))
    return {"found": right, "of": len(planted), "chance": len(planted) / 7}


def evolution(seed: int, _images: Path, objectives: str = "is,fid,size") -> dict:
    """EAGAN's stage 1, population 32 and 18 rounds, with a FID and an IS that are sums over the edges' operations."""
    args = eagan.Args(seed=seed, objectives=objectives)
    generator, space, tables = stream(seed, "planted scores"), eagan.G_SPACE, {}
    for score in ("fid", "is_mean"):
        tables[score] = [
            [
                dict(zip(edge.ops, torch.randn(len(edge.ops), generator=generator).tolist(), strict=True))
                for edge in space.edges
            ]
            for _ in range(space.cells)
        ]

    def value(score: str, genotype: tuple) -> float:
        table = tables[score]
        total = sum(table[i][j][op] for i, row in enumerate(genotype) for j, op in enumerate(row))
        return 100 + total if score == "fid" else 50 + total  # 1/IS needs a positive IS

    state, seen = eagan.State(round=1), []
    state.population = eagan.births(args, space, state, args.population, [])
    for state.round in range(1, args.rounds + 1):
        for x in state.population:
            if x.fid is None:
                x.fid, x.is_mean = value("fid", x.genotype), value("is_mean", x.genotype)
                seen.append(x.fid)
        kept, _ = eagan.select(args, state, args.population // 2)
        state.population = kept + eagan.births(args, space, state, args.population - len(kept), kept)
    rng = nas.random.Random(seed)
    random = [value("fid", eagan.sample(space, rng)) for _ in range(len(seen))]
    return {"gap_sd": (min(random) - min(seen)) / statistics.stdev(random), "evaluations": len(seen)}


def preference(seed: int, images: Path, g_lr: float = 0.0) -> dict:
    """AdversarialNAS, 60 steps of each kind: how many normal edges of G does a 5x5 operation lead?"""
    if images is None:
        sys.exit("planted: preference needs --images")
    with tempfile.TemporaryDirectory() as folder:
        flags = dict(phase="search", search_epochs=4, g_lr=g_lr, d_lr=5e-4)
        edges = normal_edges(nas_run(seed, Path(folder), images, **flags))
    led = sum(max(p, key=p.get) in ("conv_5x5", "dil_conv_5x5") for p in edges)
    return {"found": led, "of": 15, "chance": 15 * 2 / 7}


EXPERIMENTS: dict[str, Callable[..., dict]] = {
    "autogan": controller,
    "degas": teacher,
    "adversarialnas": trained_ops,
    "adversarialnas, no noise on p": lambda seed, images: trained_ops(seed, images, "off"),
    "eagan, is fid size": evolution,
    "eagan, fid": lambda seed, images: evolution(seed, images, "fid"),
    "preference, G's rate 0": preference,
    "preference, G's rate 5e-4": lambda seed, images: preference(seed, images, 5e-4),
}


def table(found: list[dict]) -> list[str]:
    lines = [
        "| experiment | found, seed 0, 1, ... | of, by chance | best, in sd above random search's |",
        "|---|---|---|---|",
    ]
    for name in EXPERIMENTS:
        mine = sorted((row for row in found if row["experiment"] == name), key=lambda row: row["seed"])
        if not mine:
            lines.append(f"| {name} | not run | | |")
            continue
        counts = ", ".join(str(row["found"]) for row in mine) if "found" in mine[0] else ""
        of = f"{mine[0]['of']}, {mine[0]['chance']:.1f}" if "of" in mine[0] else ""
        gaps = ", ".join(f"{row['gap_sd']:+.2f}" for row in mine) if "gap_sd" in mine[0] else ""
        lines.append(f"| {name} | {counts} | {of} | {gaps} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"beginnings of: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=Path, help=".npz of real images, for preference")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.what == "table":
        print("\n".join(table(rows(asked.results))))
        return
    torch.set_num_threads(1)
    chosen = [name for name in EXPERIMENTS if not asked.experiments or name.startswith(tuple(asked.experiments))]
    for name in chosen:
        for seed in asked.seeds:
            if any((row["experiment"], row["seed"]) == (name, seed) for row in rows(asked.results)):
                continue
            began = time.perf_counter()
            row = {"experiment": name, "seed": seed, **EXPERIMENTS[name](seed, asked.images)}
            row |= {
                "seconds": round(time.perf_counter() - began, 1),
                "git": git_state(ROOT)["sha"],
                "torch": torch.__version__,
            }
            print(json.dumps(write(asked.results, {**row, "command": sys.orig_argv[1:]})), flush=True)


if __name__ == "__main__":
    main()
