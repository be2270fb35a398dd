"""EAGAN's page: population, front, lineage."""

from itertools import combinations
from operator import ne
from statistics import mean

from ui import draw
from ui.curves import other_numbers
from ui.draw import Line, beside, count, fit, hanging, human, indent, score, table
from ui.files import clean, number
from ui.genotypes import cells, genotype_table
from ui.runs import Run, fid_label
from ui.search import hypervolume, numeric_keys
from ui.view import View


def ranked(round_: dict) -> list[dict]:
    """The individuals of a round: the front first, then by FID."""
    return sorted(round_["population"], key=lambda x: (x["id"] not in round_["front"], x["fid"] is None, x["fid"] or 0.0))


def diversity(people: list[dict]) -> float | None:
    """Mean fraction of differing ops over all pairs of individuals."""
    genes = [[op for row in x["genotype"] for op in row] for x in people if _rows(x["genotype"])]
    shares = [sum(map(ne, p, q)) / max(1, len(p)) for p, q in combinations(genes[:64], 2)]
    return mean(shares) if shares else None


def _rows(genotype: object) -> bool:
    return isinstance(genotype, list) and all(isinstance(row, list) for row in genotype)


def lineage(rounds: list[dict], who: str) -> list[dict]:
    """An individual and its chain of first parents, newest first."""
    everyone = {x["id"]: x for r in rounds for x in r["population"]}
    found: list[dict] = []
    while who in everyone and len(found) < 50 and everyone[who] not in found:
        found.append(everyone[who])
        who = next(iter(found[-1]["parents"]), "")
    return found


def changes(parent: object, child: object) -> str:
    """The ops in which a child differs from its parent: `cell 1 edge 3 conv_3x3 → conv_5x5`."""
    if not (_rows(parent) and _rows(child)):
        return ""
    found = []
    for i, cell in enumerate(zip(parent, child, strict=False), 1):
        ops = enumerate(zip(*cell, strict=False), 1)
        found += [f"cell {i} edge {k} {clean(a, 20)} → {clean(b, 20)}" for k, (a, b) in ops if a != b]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def hypervolumes(rounds: list[dict]) -> list[float]:
    """Share of the range of all scores that each round dominates; [] if IS is not scored."""
    scored = [x for r in rounds for x in r["population"] if x["fid"] is not None]
    if not scored or any(x["is"] is None for x in scored):
        return []
    worst = (max(x["fid"] for x in scored), min(x["is"] for x in scored))
    best = (min(x["fid"] for x in scored), max(x["is"] for x in scored))
    whole = (worst[0] - best[0]) * (best[1] - worst[1]) or 1.0
    return [hypervolume(r["population"], worst) / whole for r in rounds]


def cloud_of(of_stage: list[dict], pick: dict | None, axes: tuple[str, str], near: bool) -> tuple[list[tuple], list[tuple]]:
    """(dots, path of the front) of the rounds of a stage: a dot is (x, y, character, style). near: the front only."""
    newest = len(of_stage) - 1  # a kept individual is scored anew each round: only its newest scores can be in the front
    shown = [
        (i == newest and x["id"] in of_stage[-1]["front"], x is pick, i, x)
        for i, r in enumerate(of_stage)
        for x in r["population"]
        if None not in (x["fid"], x[axes[0]], x.get(axes[1]))
    ]
    if near:
        shown = [of for of in shown if of[2] == newest]
        shown = [of for of in shown if of[0] or of[1]] if any(of[0] for of in shown) else shown
    dots = []
    for leads, picked, i, x in sorted(shown, key=lambda of: of[:3]):
        old = ("·", "∘", "○")[min(2, 3 * (i + 1) // len(of_stage))]
        mark, style = ("★", "warn") if picked else ("◆", "key") if leads else (old, "dim")
        dots.append((x[axes[0]], x[axes[1]], mark, style))
    path = sorted((x[axes[0]], x[axes[1]]) for leads, _, _, x in shown if leads)
    return dots, _staircase(path, falling=axes == ("fid", "params"))


def _people(people: list[dict], last: dict, pick: dict | None, extra: list[str]) -> list[Line]:
    """The table of a round."""
    label, is_label = fid_label(last["net"]), fid_label(last["net"], "IS")
    kept, rows = last["kept"], []
    for k, x in enumerate(people, 1):
        style, here = ("sel", "★") if x is pick else ("", " ")
        cells = [f"{k} {'◆' if x['id'] in last['front'] else ' '}{here}", x["id"], score(x["fid"]), score(x["is"])]
        cells += [human(x.get(key)) for key in ("params", *extra)]
        rows.append([(c, style) for c in cells])
        rows[-1] += [(c, style or "dim") for c in ("kept" * (x["id"] in kept), fit(x["how"], 18).rstrip())]
    heads = ["rank", "id", label, is_label, "params", *extra, "", "made by"]
    return indent(table(heads, rows, "llrrr" + "r" * len(extra) + "ll", gap=1), 1)


def population(run: Run, width: int, height: int, view: View) -> list[Line]:
    """EAGAN: scatter plot of all rounds, the current population, hypervolume, diversity, lineage of the selected individual."""
    rounds = [r for r in run.search.rounds if view.at is None or (r["step"] or 0) <= view.at]
    if not rounds:
        return [[(" no round scored yet", "dim")]]
    stage = rounds[-1]["stage"]
    of_stage = [r for r in rounds if r["stage"] == stage]
    last, people = of_stage[-1], ranked(of_stage[-1])
    label, is_label, n = fid_label(last["net"]), fid_label(last["net"], "IS"), number(last["n"])
    volumes, spread = hypervolumes(of_stage), [diversity(r["population"]) for r in of_stage]
    pick = people[view.pick % len(people)] if people else None
    many = f"{count(len(people), 'individual')}, {len(last['front'])} in the front"
    facts = [f"stage {stage}", f"round {human(last['round'])}", many, *([f"scored on {human(n)} images"] if n else [])]
    lines = hanging(" ", facts, width, " · ", "bold")
    trend: Line = [(" ", "")]
    if volumes:
        trend += [("hypervolume ", "dim"), (draw.spark(volumes, 20), "key"), (f" {volumes[-1]:.3f}   ", "")]
    if spread[-1] is not None:
        trend += [("diversity ", "dim"), (draw.spark(spread, 20), "key"), (f" {spread[-1]:.2f}", "")]
    lines += [trend, *other_numbers(run, width, view, ("stage", "round", "front", "eval/n"))]
    if not people:
        return [*lines, [(" this round has no individuals", "dim")]]
    extra = [k for k in numeric_keys(people) if k not in ("fid", "is", "params")]
    listed = _people(people, last, pick, extra)
    pairs = [("fid", "is"), ("fid", "params"), ("params", "is"), *(("fid", k) for k in extra)]
    axes = pairs[view.axes % len(pairs)]
    if axes == ("fid", "is") and all(x["is"] is None for x in people):
        axes = ("fid", "params")
    names = {"fid": label + " ↓", "is": is_label + " ↑", "params": "parameters ↓"} | {k: k for k in extra}
    tall = max(6, min(28, height - 10 if width < 100 else height - 14))
    listing = max(draw.width_of(line) for line in listed) + 3
    wide = width if width < 100 else max(44, width - listing)
    dots, path = cloud_of(of_stage, pick, axes, view.near)
    path = [] if axes[1] in extra else path  # whether lower or higher is better is not known
    legend: Line = [(f" {names[axes[1]]} over {names[axes[0]]}   ", "bold"), ("◆ front  ", "key"), ("★ selected  ", "warn")]
    legend += [(text, "dim") for text in ("· ∘ ○ older to newer   ", "o change axes   ", "z front only")]
    while draw.width_of(legend) > width:
        legend.pop()
    cloud = draw.scatter(dots, wide, tall, log_x=axes[0] == "fid" and all(d[0] > 0 for d in dots), path=path)
    lines.append(legend)
    lines += beside(cloud, listed, wide) if width >= 100 else [*cloud, *listed]
    lines += [[], *_pedigree(of_stage, pick, width, run)]
    return lines


def _staircase(path: list[tuple[float, float]], falling: bool) -> list[tuple[float, float]]:
    """Keep only points that improve from left to right: a front of three objectives is not monotone in two."""
    made: list[tuple[float, float]] = []
    for x, y in path:
        if not made or (y < made[-1][1] if falling else y > made[-1][1]):
            made.append((x, y))
    return made


def _pedigree(rounds: list[dict], pick: dict | None, width: int, run: Run) -> list[Line]:
    if not pick:
        return []
    line = lineage(rounds, pick["id"])
    parents = " × ".join(pick["parents"]) or "no parents"
    lines: list[Line] = [[(f" ★ {pick['id']}", "bold"), (f" = {parents} · {pick['how']}", "")]]
    if len(line) > 1:
        diff = changes(line[1]["genotype"], pick["genotype"])
        if diff:
            lines += hanging(f"   vs. {line[1]['id']}  ", diff.split(", "), width, ", ")
        lines += hanging("   lineage  ", [f"{x['id']} {score(x['fid'])}" for x in reversed(line)], width, " › ")
    if _rows(pick["genotype"]):
        net = "G" if str(rounds[-1]["stage"]) == "1" else "D"
        lines += [[], *genotype_table(cells(run, {net: pick["genotype"]}, net), width)]
    return lines
