"""Genotypes of all four methods: cells with named edges, distances, tables, and the architecture tab."""

from ui import draw
from ui.draw import Line, beside, fit, human, score, table
from ui.files import clean, get, number
from ui.runs import Run, fid_label
from ui.search import edges, entropy
from ui.view import View

SPACES = {  # (net, ops per cell): edge names, if neither search.jsonl nor the genotype has them
    ("G", 7): ("0->1", "0->2", "1->3", "2->3", "1->4", "2->4", "3->4"),  # EAGAN, AdversarialNAS
    ("D", 7): ("0->1", "0->2", "1->2", "1->3", "0->3", "2->4", "3->4"),
}
NETS = {"G": "generator", "D": "discriminator"}

Cell = tuple[str, list[str], list[tuple[str, str, str]]]  # title, nodes, (from, to, op)


def cells(run: Run, genotype: dict, net: str) -> list[Cell]:
    """The cells of a genotype of any of the four methods, with named edges."""
    nodes, parts = genotype.get("nodes"), genotype.get("cells")
    links: list[tuple[str, str, str]] = []
    if isinstance(nodes, dict) and net == "G":  # DEGAS: one graph, {node: [[from, op], ...]}
        for target, inputs in list(nodes.items())[:60]:
            good = [x for x in inputs if isinstance(x, list) and len(x) == 2] if isinstance(inputs, list) else []
            links += [(clean(source, 12), clean(target, 12), clean(op, 30)) for source, op in good]
        names: list[str] = []
        for a, b, _ in links:
            names += [n for n in (a, b) if n not in names]
        return [("generator", names, links)] if links else []
    if isinstance(parts, list) and net == "G":  # AutoGAN: a chain of cells
        names = ["z", *(f"cell {i}" for i in range(1, len(parts[:12]) + 1))]
        for i, part in enumerate(parts[:12], 1):
            part = part if isinstance(part, dict) else {}
            own = " ".join(clean(part.get(k), 12) for k in ("conv", "norm", "up"))
            links.append((names[i - 1], names[i], own + (" + shortcut" if part.get("shortcut") else "")))
            skips = part.get("skips") if isinstance(part.get("skips"), list) else []  # numbers of earlier cells
            links += [(f"cell {k}", names[i], "skip" if k in skips else "none") for k in range(1, i)]
        return [("generator", names, links)]
    rows = genotype.get(net)
    if not isinstance(rows, list):
        return []
    made = []
    for i, row in enumerate(rows[:12], 1):
        ops = [clean(op, 30) for op in row] if isinstance(row, list) else []
        if not ops:
            continue
        links = [(*name.partition("->")[::2], op) for name, op in zip(edge_names(run, net, i, len(ops)), ops, strict=False)]
        names = sorted({n for a, b, _ in links for n in (a, b)}, key=lambda n: (len(n), n))
        made.append((f"cell {i}/{len(rows)}", names, links))
    return made


def edge_names(run: Run, net: str, cell: int, n: int) -> tuple[str, ...]:
    """Edge names ("0->1") of a cell: from the probabilities, else the published spaces, else numbered as a chain."""
    named = tuple(e.partition("/")[2] for e in edges(run.search.row(0), net) if e.partition("/")[0] == str(cell))
    if len(named) == n and all("->" in e for e in named):
        return named
    return SPACES.get((net, n)) or tuple(f"{i}->{i + 1}" for i in range(n))


def flat(found: list[Cell]) -> list[tuple[str, str]]:
    """[(edge, op)] over all cells."""
    return [(f"{title} {a}->{b} {k}", op) for title, _, links in found for k, (a, b, op) in enumerate(links)]


def hamming(a: list[Cell], b: list[Cell]) -> tuple[int, int]:
    """(number of differing edges, number of edges) of two genotypes. An edge that only one has counts as differing."""
    p, q = dict(flat(a)), dict(flat(b))
    every = {*p, *q}
    return sum(p.get(k) != q.get(k) for k in every), len(every)


def architecture(run: Run, width: int, height: int, view: View) -> list[Line]:
    """Diagrams of as many cells as fit, a table of all cells, sizes, and changes since the last genotype."""
    genotype = run.genotype_at(view.at)
    found = cells(run, genotype, view.net)
    if not found:
        other = next((f" · o switches to {n}" for n in "GD" if cells(run, genotype, n)), "")
        fixed = clean(genotype.get("fixed_d"), 30)
        why = f"no {NETS[view.net]} genotype" + (" yet" if run.live else " in this run")
        why = f"the discriminator is fixed ({fixed})" if view.net == "D" and fixed else why
        return [[(f" {why}{other}", "dim")]]
    history = [s for s, _ in run.files("genotypes", ".json") if view.at is None or s <= view.at]
    before = cells(run, run.genotype_at(history[-2]), view.net) if len(history) > 1 else []
    old = dict(flat(before))
    row = run.search.row(run.search.at(view.at)) if run.search.kind == "probabilities" else {}
    p = edges(row, view.net)
    head: Line = [(f" {NETS[view.net]}", "bold"), (f"   as of step {human(history[-1])}" if history else "", "dim")]
    head += [(f"   * = changed since step {human(history[-2])}", "dim")] if before else []
    below = [*genotype_table(found, width, old), [], *_facts(run, genotype, width)]
    if before:
        d, n = hamming(found, before)
        below.append([(f" {d} of {n} edges changed since step {human(history[-2])}", "")])
    if p:
        sure, lazy = sum(max(q.values()) > 0.5 for q in p.values()), idle(p)
        below.append([(f" edges decided (p > 0.5) {sure}/{len(p)} {draw.bar(sure / len(p), 8)}", "")])
        text = f"   skip/none on {100 * lazy:.0f}% of edges" + (": collapse?" if lazy > 0.6 else "")
        below[-1].append((text, "bad" if lazy > 0.6 else ""))
    tall = max(len(links) for _, _, links in found) + 3
    fits = max(1, min(len(found), (height - 2 - len(below)) // tall))
    lines = [head]
    wide = min(width, 130)
    by_name = {e.partition("/")[2]: q for e, q in p.items()} if len(found) == 1 else {}  # DEGAS: one graph of three cells
    for k in range(fits):
        i = (view.cell + k) % len(found)
        title, nodes, links = found[i]
        shown = []
        for j, (a, b, op) in enumerate(links):
            changed = old and old.get(f"{title} {a}->{b} {j}") != op
            shown.append((a, b, op + (" *" if changed else ""), "warn" if changed else "key"))
        picture = draw.rails(nodes, shown, wide - (28 if p else 2))
        if p:
            side: list[Line] = [[("edge         p     H", "dim")]]
            for a, b, op in links:
                q = p.get(f"{i + 1}/{a}->{b}") or by_name.get(f"{a}->{b}") or {}
                side.append([(f"{fit(f'{a}->{b}', 9)} {q.get(op, 0):5.2f} {entropy(q):5.2f}" if q else f"{a}->{b}", "")])
            picture = beside(picture, side, wide - 28)
        hint = "   [ ] previous/next cell" if len(found) > fits and k == 0 else ""
        lines += [[(f" {title}", "bold key"), (hint, "dim")], *picture, []]
    return [*lines, *below]


def _facts(run: Run, genotype: dict, width: int) -> list[Line]:
    """Sizes, scores at search time, and AutoGAN's vector."""
    facts, found, net = [], genotype.get("scores"), run.last.get("net")
    for n in "GD":
        if params := number(get(genotype, "params", n)):
            macs = number(get(genotype, "macs", n))
            facts.append(f"{n} {human(params)} parameters" + (f", {human(macs)} MACs" if macs else ""))
    scores = {k: v for k in ("fid", "is") if net and (v := number(get(found, k))) is not None}
    facts += [f"{fid_label(net, k.upper())} {score(v)} at search time" for k, v in scores.items()]
    facts += [f"vector {clean(genotype['vector'], 80)}"] if genotype.get("vector") else []
    return draw.hanging(" ", facts, width, "   ")


def genotype_table(found: list[Cell], width: int, old: dict[str, str] | None = None) -> list[Line]:
    """One row per cell, one column per edge; changed ops in brackets."""
    heads = [f"{a}->{b}" for a, b, _ in found[0][2]] if found else []
    if any([f"{a}->{b}" for a, b, _ in links] != heads for _, _, links in found):  # different edges: one row per edge
        rows = [(t, f"{a} -> {b}", op) for t, _, links in found for a, b, op in links]
        return [[(" ", ""), *line] for line in table(["cell", "edge", "op"], rows)]
    rows = []
    for title, _, links in found:
        ops = []
        for k, (a, b, op) in enumerate(links):
            changed = old and old.get(f"{title} {a}->{b} {k}") != op
            ops.append((f"[{op}]", "warn") if changed else op)
        rows.append([title, *ops])
    lines = [[(" ", ""), *line] for line in table(["cell", *heads], rows, gap=1)]
    if draw.width_of(lines[-1]) > width:  # too wide: transpose
        turned = [[head, *(row[i + 1] for row in rows)] for i, head in enumerate(heads)]
        lines = [[(" ", ""), *line] for line in table(["edge", *(str(r[0]) for r in rows)], turned, gap=1)]
    return lines


def idle(p: dict[str, dict[str, float]]) -> float:
    """Fraction of edges on which skip or none is the most probable op."""
    return sum(max(q, key=q.get) in ("none", "skip_connect") for q in p.values()) / len(p)
