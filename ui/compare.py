"""Comparison of runs: scores, arguments, sources, genotypes, groups of seeds."""

import difflib
from statistics import mean, stdev

from ui.draw import Line, count, human, indent, score, table
from ui.files import clean, get, number
from ui.genotypes import cells, flat, genotype_table, hamming
from ui.runs import Run, fid_label, kind_of
from ui.view import View


def config_diff(a: Run, b: Run) -> list[tuple[str, object, object]]:
    """Differing arguments, and script, data digest, device and git commit if they differ."""
    found = [(clean(key, 30), a.args.get(key), b.args.get(key)) for key in sorted({*a.args, *b.args}, key=str)]
    found += [(key, a.config.get(key), b.config.get(key)) for key in ("script", "data_digest", "device", "world_size")]
    found.append(("git", *(get(run.config, "git", "sha") for run in (a, b))))
    return [row for row in found if row[1] != row[2]]


def compared_scores(a: Run, b: Run, at: float | None) -> list[Line]:
    """Last and best scores of the kinds of evaluation that both runs have, up to step `at`; the other kinds are named."""
    lines: list[Line] = [[(" scores", "bold"), ("   only evaluations of the same kind compare", "dim")]]
    found: list[dict[tuple, list[dict]]] = [{}, {}]
    for run, kinds in zip((a, b), found, strict=True):
        for e in run.evaluations():
            if at is None or e["step"] <= at:
                kinds.setdefault(kind_of(e), []).append(e)
    rows, alone = [], []
    for kind in dict.fromkeys([*found[0], *found[1]]):
        if not (kind in found[0] and kind in found[1]):
            alone.append([(f"   only {'A' if kind in found[0] else 'B'} has: {kind_words(kind)}", "dim")])
            continue
        lasts = [kinds[kind][-1] for kinds in found]
        rows.append((kind_words(kind), "", "", "", ""))
        for key, pick in (("fid", min), ("is", max)):
            label = fid_label(kind[1], key.upper())
            values = [[e[key] for e in kinds[kind] if e[key] is not None] for kinds in found]
            if not all(values):
                continue
            for what, pair in (("last", [e[key] for e in lasts]), ("best", [pick(v) for v in values])):
                delta = pair[0] - pair[1] if None not in pair else None
                steps = " and ".join(dict.fromkeys(human(e["step"]) for e in lasts)) if what == "last" else ""
                rows.append((f"  {what} {label}", *(score(v) for v in pair), "+" * ((delta or 0) > 0) + score(delta), steps))
    lines += indent(table(["", "A", "B", "A - B", "at step"], rows, "lrrrr", most=60)) if rows else []
    return [*lines, *alone] if rows or alone else [*lines, [("   neither run has been evaluated", "dim")]]


def kind_words(kind: tuple) -> str:
    """A kind of evaluation in words."""
    phase, net, n, ref, ema = kind
    words = [phase, fid_label(net), f"{human(n)} images" if number(n) else "", f"against {ref}" if ref else ""]
    return ", ".join(clean(w, 40) for w in [*words, "averaged G" if ema else "G as trained"] if w)


def compare(a: Run, b: Run, width: int, view: View) -> list[Line]:
    """Scores of the same kind, and differences in arguments, genotypes and sizes."""
    lines = compared_scores(a, b, view.at)
    differing = config_diff(a, b)
    lines += [[], [(f" arguments and code: {count(len(differing), 'difference')}", "bold")]]
    shown = []
    for key, va, vb in differing:
        na, nb = number(va), number(vb)
        delta = human(na - nb, 4) if na is not None and nb is not None else "≠"
        shown.append((key, *(clean("—" if v is None else v) for v in (va, vb)), delta))
    lines += indent(table(["", "A", "B", "Δ"], shown)) if shown else []
    for net in "GD":
        ca, cb = cells(a, a.genotype_at(view.at), net), cells(b, b.genotype_at(view.at), net)
        if ca and cb:
            d, n = hamming(ca, cb)
            same = space_of(a, net) == space_of(b, net)
            told = f"{n - d} of {n} edges equal, Hamming distance {d}" if same else "different search spaces, not comparable"
            lines += [[], [(f" genotype {net}: {told}", "bold")]]
            for letter, mine, other in (("A", ca, cb), ("B", cb, ca)):
                rows = genotype_table(mine, width - 3, dict(flat(other)) if same else None)
                lines += [[(f" {letter} ", "bold"), *row[1:]] for row in rows]
        elif ca or cb:
            lines += [[], [(f" genotype {net}: only in {'A' if ca else 'B'}", "dim")]]
    sizes = []
    for what in ("params", "macs"):
        for net in "GD":
            va, vb = (number(get(r.genotype, what, net)) for r in (a, b))
            if va and vb:
                sizes.append((f"{what} {net}", human(va), human(vb), f"{100 * (va / vb - 1):+.0f}%"))
    lines += [[], [(" size", "bold")], *indent(table(["", "A", "B", "A vs. B"], sizes, "lrrr"))] if sizes else []
    return lines


def source_diff(a: Run, b: Run) -> list[Line]:
    """Diff of the source snapshots of two runs."""
    one, two = a.source(), b.source()
    if not one or not two:
        return [[(" cannot compare: a run has no source/", "dim")]]
    lines: list[Line] = []
    for name in sorted({*one, *two}):
        texts = (source.get(name, "").splitlines() for source in (one, two))
        for text in difflib.unified_diff(*texts, f"A/{name}", f"B/{name}", lineterm="", n=2):
            style = {"+": "good", "-": "bad", "@": "info"}.get(text[:1], "")
            lines.append([(" " + clean(text), style)])
        if len(lines) > 5000:
            break
    return lines or [[(" the sources are identical", "good")]]


def space_of(run: Run, net: str) -> str:
    """The search space of a net. EAGAN's and AdversarialNAS's generators share one, which they may exchange."""
    return "eagan" if net == "G" and run.method == "adversarialnas" else run.method


def distances(runs: list[Run], net: str = "G") -> list[Line]:
    """Hamming distances between the genotypes of all pairs of runs, for each search space."""
    having = [(r, c) for r in runs if (c := cells(r, r.genotype, net))][:26]
    lines: list[Line] = []
    for space in dict.fromkeys(space_of(run, net) for run, _ in having):
        group = [(run, mine) for run, mine in having if space_of(run, net) == space]
        if len(group) < 2:
            continue
        numbers = [str(i) for i in range(1, len(group) + 1)]  # letters name the curves
        rows = []
        for i, (run, mine) in enumerate(group):
            apart = ["·" if i == k else hamming(mine, other)[0] for k, (_, other) in enumerate(group)]
            rows.append([numbers[i], *apart, run.name])
        methods = " and ".join(dict.fromkeys(run.method for run, _ in group))
        lines.append([(f" genotype {net} of {methods}: edges that differ", "bold")])
        lines += indent(table(["", *numbers, ""], rows, "l" + "r" * len(group)))
    return lines


def over_seeds(group: list[Run]) -> list[list[str]]:
    """Mean ± standard deviation of the last scores, for each kind of evaluation that they are of."""
    kinds: dict[tuple, list[dict]] = {}
    for run in group:
        if run.last.get("fid") is not None:
            kinds.setdefault(kind_of(run.last), []).append(run.last)
    texts = []
    for (_, net, n, *_), lasts in kinds.items():
        found = {fid_label(net, k.upper()): [e[k] for e in lasts if e.get(k) is not None] for k in ("fid", "is")}
        scores = [f"{label} {spread(values)}" for label, values in found.items() if values]
        texts.append([*scores, *([f"on {human(n)} images"] if n else [])])
    return texts


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
