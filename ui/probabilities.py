"""The page of AdversarialNAS and DEGAS: the probability of every op on every edge."""

from itertools import pairwise
from statistics import mean

from ui import draw
from ui.curves import other_numbers
from ui.draw import Line, beside, fit, hanging, human
from ui.files import clean, get, number
from ui.genotypes import NETS
from ui.runs import Run
from ui.search import edges, entropy
from ui.view import View


def probabilities(run: Run, width: int, height: int, view: View) -> list[Line]:
    """AdversarialNAS, DEGAS: op probabilities and entropy per edge, one edge over time, total entropy and flips."""
    i = run.search.at(view.at)
    row = run.search.row(i)
    p = edges(row, view.net)
    other = [n for n in "GD" if edges(row, n)]
    if not p:
        return [[(f" no probabilities for {view.net}" + (f" · o switches to {other[0]}" if other else " yet"), "dim")]]
    names = list(p)
    pick = view.pick % len(names)
    facts = [f"{NETS[view.net]} · step {human(number(row.get('step')))}"]
    facts += [f"tau {human(number(row.get('tau')))}"] if number(row.get("tau")) is not None else []
    flips = number(get(row, "flips", view.net))
    facts += [f"{human(flips)} top-1 flips so far"] if flips is not None else []
    h = {e: number(get(row, "entropy", view.net, e)) for e in names}
    h = {e: entropy(p[e]) if v is None else v for e, v in h.items()}
    facts.append(f"mean entropy {mean(h.values()):.2f} nats")
    lines = hanging(" ", facts, width, " · ", "bold")
    trend: Line = [(" ", "")]
    for key, label in ((f"entropy {view.net}", "entropy "), (f"flips {view.net}", "  flips ")):
        values = run.search.until(key, view.at)
        if key.startswith("flips"):
            values = [b - a for a, b in pairwise([0.0, *values])]
        if values:
            trend += [(label, "dim"), (draw.spark(values, 24), "key")]
    lines.append(trend)
    counts, rec = row.get("counts"), number(row.get("loss/rec"))
    more = [f"reconstruction loss {human(rec)}, mean image baseline {human(number(row.get('loss/mean_image')))}"] if rec else []
    more += [f"{clean(k, 12)} {human(number(v))}" for k, v in list(counts.items())[:4]] if isinstance(counts, dict) else []
    lines += [[(" " + " · ".join(more), "dim")]] if more else []
    known = ("tau", "loss/rec", "loss/mean_image", *(f"{k} {net}" for k in ("entropy", "flips") for net in "GD"))
    lines += other_numbers(run, width, view, known)
    groups: list[tuple[list[str], list[str]]] = []  # edges with the same candidate ops share a table
    for edge, q in p.items():
        fitting = next((g for g in groups if {*q} <= {*g[0]} or {*g[0]} <= {*q}), None)
        if fitting is None:
            groups.append((list(q), [edge]))
        else:
            fitting[0].extend(o for o in q if o not in fitting[0])
            fitting[1].append(edge)
    tables = [_heat_map(p, h, edges_, ops, names[pick]) for ops, edges_ in groups]
    side = [draw.width_of(block[0]) for block in tables]
    if len(tables) == 2 and sum(side) + 2 <= width:
        tables = [beside(*tables, side[0])]
    for block in tables:
        lines += [[], *block]
    wide = max(8, min(100, width - 26))
    over = [edges(run.search.row(round(k * i / (wide - 1))), view.net).get(names[pick], {}) for k in range(wide)]
    full = max(max(q.values(), default=0.0) for q in over)
    lines += [[], [(f" edge {names[pick]} over time, █ = {full:.2f}", "bold"), ("   [ ] previous/next edge", "dim")]]
    lines += [[(" ", ""), *line] for line in draw.heat(over, full)]
    return lines


def _heat_map(p: dict, h: dict, edges: list[str], ops: list[str], picked: str) -> list[Line]:
    """Table of edges and ops: probabilities, the largest per edge shaded, and the entropy."""
    short = [_short(o) for o in ops]
    head, wide = max(map(len, edges)) + 2, max(6, *map(len, short)) + 1
    lines: list[Line] = [[(fit("  edge", head) + "".join(fit(s, wide, True) for s in short) + "      H", "dim")]]
    for edge in edges:
        line: Line = [(("▸ " if edge == picked else "  ") + fit(edge, head - 2), "bold" if edge == picked else "")]
        for op in ops:
            v, top = p[edge].get(op), max(p[edge].values())
            dark = draw.shade(v) if v == top else " "
            text = "" if v is None else f"{dark}{v:.2f}{dark}"
            line.append((fit(text, wide, True), "" if v is None else "key bold" if v == top else "dim" if v < 0.05 else ""))
        lines.append([*line, (f"  {h[edge]:5.2f}", "dim")])
    return lines


def _short(op: str) -> str:
    """An op's name, abbreviated to at most seven characters."""
    for long, brief in (
        *(("skip_connect", "skip"), ("conv_transpose", "convT"), ("deconv_", "deconv"), ("nn_conv_", "nnconv")),
        *(("dil_conv_", "d"), ("sep_conv_", "s"), ("_pool", "pool"), ("bilinear", "bilin"), ("conv_", "c")),
    ):
        if long in op:
            return op.replace(long, brief)[:7]
    return op[:7]
