"""The contents of a run's tabs as lines of text: header, architecture, search, configuration, comparison.

Search pages: EAGAN has population, front and lineage; AdversarialNAS and DEGAS the probability of every op on every edge;
AutoGAN reward, policy and beam. The keys in search.jsonl decide which page is shown, so copies of a script get it too.
"""

import difflib
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

from ui import draw
from ui.draw import Line, Series, beside, count, duration, fit, human, score, table, wrapped
from ui.runs import Run, clean, edges, entropy, fid_label, get, hypervolume, kind_of, number, numeric_keys, same_but_seed

GLYPHS = {
    **{"queued": "○", "starting": "◌", "running": "●", "paused": "‖", "stalled": "⚠", "stopping": "◍"},
    **{"done": "✓", "stopped": "■", "failed": "✗", "lost": "?"},
}
STYLES = {
    **{"queued": "dim", "starting": "info", "running": "good", "paused": "warn", "stalled": "warn", "stopping": "warn"},
    **{"done": "good", "stopped": "info", "failed": "bad", "lost": "bad"},
}
TITLES = {"evolution": "Population", "probabilities": "Probabilities", "controller": "Policy"}
SPACES = {  # (net, ops per cell): edge names, if neither search.jsonl nor the genotype has them
    ("G", 7): ("0->1", "0->2", "1->3", "2->3", "1->4", "2->4", "3->4"),  # EAGAN, AdversarialNAS
    ("D", 7): ("0->1", "0->2", "1->2", "1->3", "0->3", "2->4", "3->4"),
}


@dataclass
class View:
    """What the user has selected on a run's screen."""

    at: float | None = None  # show the state at this step; None: the latest
    net: str = "G"
    cell: int = 0
    pick: int = 0  # index of the selected individual or edge
    near: bool = False  # show only the front
    axes: int = 0  # index of the axes of the scatter plot


# ---- header -----------------------------------------------------------------------------------------------------------


def state_word(run: Run) -> str:
    return f"{GLYPHS[run.state]} {run.state}" + (f": {run.why}" if run.why else "")


def scores(run: Run, at: float | None = None) -> str:
    """`FID 12.71 IS 8.41±0.10 on 50k images`; networks other than Inception are named: `FID(compact)`. at: up to a step."""
    last = run.last_at(at)
    if not last:
        return ""
    words = [f"{fid_label(last.get('net'))} {score(last['fid'])}"] if last.get("fid") is not None else []
    if last.get("is") is not None:
        std = f"±{last['is_std']:.2f}" if last.get("is_std") is not None else ""
        words.append(f"{fid_label(last.get('net'), 'IS')} {score(last['is'])}{std}")
    n = number(last.get("n"))
    return " ".join([*words, *([f"on {human(n)} images"] if n else [])])


def header(run: Run, width: int, at: float | None = None) -> list[Line]:
    """Three lines: identity, progress, scores. at: as of a step."""
    facts = [run.script or run.method, run.dataset, f"seed {run.seed}" if run.seed is not None else ""]
    pid = run.process.get("pid")
    facts += [f"pid {pid}" if run.live and isinstance(pid, int) else "", clean(run.config.get("device"), 30)]
    sha = clean(get(run.config, "git", "sha"), 7)
    facts.append(f"git {sha}{'+changes' if get(run.config, 'git', 'dirty') else ''}" if sha else "")
    title = f" {GLYPHS[run.state]} {fit(run.name, min(len(run.name), width // 2)).rstrip()}  "
    room = width - draw.cell_len(title)
    first: Line = [(title, "bold " + STYLES[run.state]), (wrapped((f for f in facts if f), room, " · ")[0], "dim")]
    step, total = run.step if at is None else at, run.total
    share = min(1.0, step / total) if step is not None and total else None
    stage = clean(run.status.get("stage") or run.phase, 30)
    left = f" {run.state} " + (f"· {run.why} " if run.why else "") + (f"· {stage} " if stage and run.live else "")
    left = left if at is None else " as of "
    right = f" step {human(step)}" + (f"/{human(total)}  {100 * (share or 0):.0f}%" if total else "")
    right += f"  {duration(run.eta)} left" if run.eta is not None and at is None else ""
    right += f"  {human(run.rate)} steps/s" if run.rate and at is None else ""
    room = width - len(left) - len(right) - 1
    tone = STYLES[run.state] if at is None else "warn"
    second: Line = [(left, tone), *(draw.progress(share, room) if room > 5 else []), (right, "")]
    best = run.best(at)
    third = [f" {scores(run, at) or 'not evaluated' + ' yet' * (run.live or at is not None)}"]
    third += [f"best {score(best['fid'])} at step {human(best['step'])}"] if best else []
    third += [f"memory {draw.size(run.memory)}"] if run.memory and at is None else []
    third += [f"{count(run.bad, 'unreadable line')}"] if run.bad else []
    third += [f"cannot read {', '.join(f'{k} ({v})' for k, v in run.problems.items())}"] if run.problems else []
    if run.error and at is None:
        third = [f" {run.error}", *third[:1]]
    return [first, second, [(fit(" · ".join(third), width), "bad" if (run.error and at is None) or run.problems else "")]]


# ---- curves -----------------------------------------------------------------------------------------------------------


def metrics(run: Run) -> list[str]:
    """Names of all metrics that can be plotted, scores first."""
    keys = list(run.columns.keys)
    found = [k for k in keys if k.startswith("FID")] + [k for k in keys if k.startswith("IS")]
    found += sorted(k for k in keys if k not in found and not k.startswith("noise/"))
    return found + [k for k in run.search.series if k not in found]


def is_score(metric: str) -> bool:
    return metric.startswith(("FID", "IS"))


def points(run: Run, metric: str, axis: str = "step") -> "tuple":
    """(x, y) of a metric. axis: step, hours, GPU-hours. Score curves break between phases: those scores do not compare."""
    import numpy as np

    if metric in run.search.series and metric not in run.columns.keys:
        steps, values = run.search.series[metric]
        n = min(len(steps), len(values))
        x, y = np.array(steps[:n], float), np.array(values[:n], float)
        seconds = np.interp(x, *_clock(run)) if axis != "step" and len(run.columns.step) else x
    else:
        x, seconds, y = run.column(metric)
        cuts = [c for c in run.columns.breaks.get(metric, ()) if c < len(x)]
        if cuts:
            x, seconds, y = (np.insert(v, cuts, w) for v, w in ((x, x[cuts]), (seconds, seconds[cuts]), (y, np.nan)))
    if axis != "step":
        world = number(run.config.get("world_size")) or 1
        x = seconds / 3600 * (world if axis == "GPU-hours" else 1)
        x = np.where(np.isnan(x), 0.0, x)
    if len(x) > 1 and (np.diff(x) < 0).any():
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    return x, y


def _clock(run: Run) -> "tuple":
    import numpy as np

    with run.lock:
        step, t = np.array(run.columns.step), np.array(run.columns.t)
    good = np.isfinite(t)
    return step[good], np.maximum.accumulate(t[good]) if good.any() else t[good]


def troubles(run: Run) -> dict[str, str]:
    """Warning signs in a run's metrics and samples: {kind: message}."""
    found = {}
    if run.columns.nans:
        found["nan"] = f"{count(run.columns.nans, 'value')} not finite"
    d = points(run, "loss/d")[1][-50:]
    if len(d) >= 10 and abs(d.mean()) < 0.02:
        found["balance"] = "D wins: its loss is near 0"
    seen = [v for v in varieties(run) if v is not None]
    if len(seen) > 1 and seen[-1] < 0.4 * max(seen):
        found["modes"] = f"sample variety {seen[-1]:.2f}, was {max(seen):.2f}: mode collapse?"
    p = edges(run.search.row(-1), "G")
    if p and idle(p) > 0.6:
        found["edges"] = f"skip/none on {100 * idle(p):.0f}% of edges: collapse?"
    if run.search.warning:
        found["search"] = run.search.warning
    return found


def idle(p: dict[str, dict[str, float]]) -> float:
    """Fraction of edges on which skip or none is the most probable op."""
    return sum(max(q, key=q.get) in ("none", "skip_connect") for q in p.values()) / len(p)


def varieties(run: Run) -> list[float | None]:
    """Sample variety (draw.variety) of the first, middle and last grid."""
    files = [path for _, path in run.files("samples", ".png")]
    wanted = list(dict.fromkeys([*files[:1], *files[len(files) // 2 :][:1], *files[-1:]]))
    for path in wanted:
        if path not in run.varieties:
            try:
                run.varieties[path] = draw.variety(draw.open_image(path))
            except ValueError:
                run.varieties[path] = None
    return [run.varieties[path] for path in wanted]


def health(run: Run) -> Line:
    """One line: mean losses, sample variety, warnings."""
    words: Line = []
    g, d = (points(run, f"loss/{k}")[1][-50:] for k in "gd")
    if len(g) and len(d):
        words.append((f" mean loss D {d.mean():.2f} G {g.mean():.2f} ", ""))
    if seen := [v for v in varieties(run) if v is not None]:
        words.append((f" sample variety {seen[-1]:.2f} ", ""))
    return [*words, *((f" ⚠ {text} ", "bad") for text in troubles(run).values())]


# ---- architecture -----------------------------------------------------------------------------------------------------

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
        below.append(_decided(p))
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
        lines += [
            [(f" {title}", "bold key"), ("   [ ] previous/next cell" if len(found) > fits and k == 0 else "", "dim")],
            *picture,
            [],
        ]
    return [*lines, *below]


NETS = {"G": "generator", "D": "discriminator"}


def _facts(run: Run, genotype: dict, width: int) -> list[Line]:
    """Sizes, scores at search time, and AutoGAN's vector."""
    facts = []
    for n in "GD":
        params, macs = number(get(genotype, "params", n)), number(get(genotype, "macs", n))
        if params:
            facts.append(f"{n} {human(params)} parameters" + (f", {human(macs)} MACs" if macs else ""))
    found, net = genotype.get("scores"), run.last.get("net")
    for key in ("fid", "is"):
        if (value := number(get(found, key))) is not None and net:
            facts.append(f"{fid_label(net, key.upper())} {score(value)} at search time")
    facts += [f"vector {clean(genotype['vector'], 80)}"] if genotype.get("vector") else []
    return [[(" " + text, "")] for text in wrapped(facts, width - 2)] if facts else []


def _decided(p: dict[str, dict[str, float]]) -> Line:
    """How many edges have an op with p > 0.5, and on how many skip or none leads."""
    sure = sum(max(q.values()) > 0.5 for q in p.values())
    line: Line = [(f" edges decided (p > 0.5) {sure}/{len(p)} {draw.bar(sure / len(p), 8)}", "")]
    text = f"   skip/none on {100 * idle(p):.0f}% of edges" + (": collapse?" if idle(p) > 0.6 else "")
    return [*line, (text, "bad" if idle(p) > 0.6 else "")]


def genotype_table(found: list[Cell], width: int, old: dict[str, str] | None = None) -> list[Line]:
    """One row per cell, one column per edge; changed ops in brackets."""
    heads = [f"{a}->{b}" for a, b, _ in found[0][2]] if found else []
    if any(
        [f"{a}->{b}" for a, b, _ in links] != heads for _, _, links in found
    ):  # the cells have different edges: one row per edge
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


# ---- EAGAN ------------------------------------------------------------------------------------------------------------


def ranked(round_: dict) -> list[dict]:
    """The individuals of a round: the front first, then by FID."""
    return sorted(round_["population"], key=lambda x: (x["id"] not in round_["front"], x["fid"] is None, x["fid"] or 0.0))


def diversity(people: list[dict]) -> float | None:
    """Mean fraction of differing ops over all pairs of individuals."""
    genes = [[op for row in x["genotype"] for op in row] for x in people if _rows(x["genotype"])]
    shares = [
        sum(a != b for a, b in zip(p, q, strict=False)) / max(1, len(p))
        for i, p in enumerate(genes[:64])
        for q in genes[i + 1 : 64]
    ]
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
    found = [
        f"cell {i} edge {k} {clean(a, 20)} → {clean(b, 20)}"
        for i, (p, q) in enumerate(zip(parent, child, strict=False), 1)
        for k, (a, b) in enumerate(zip(p, q, strict=False), 1)
        if a != b
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def population(run: Run, width: int, height: int, view: View) -> list[Line]:
    """EAGAN: scatter plot of all rounds, the current population, hypervolume, diversity, lineage of the selected individual."""
    rounds = [r for r in run.search.rounds if view.at is None or (r["step"] or 0) <= view.at]
    if not rounds:
        return [[(" no round scored yet", "dim")]]
    stage = rounds[-1]["stage"]
    of_stage = [r for r in rounds if r["stage"] == stage]
    last, people = of_stage[-1], ranked(of_stage[-1])
    label, is_label = fid_label(last["net"]), fid_label(last["net"], "IS")
    scored = [x for r in of_stage for x in r["population"] if x["fid"] is not None]
    volumes = []
    if all(x["is"] is not None for x in scored) and scored:
        worst = (max(x["fid"] for x in scored), min(x["is"] for x in scored))
        best = (min(x["fid"] for x in scored), max(x["is"] for x in scored))
        whole = (worst[0] - best[0]) * (best[1] - worst[1]) or 1.0
        volumes = [hypervolume(r["population"], worst) / whole for r in of_stage]
    spread = [diversity(r["population"]) for r in of_stage]
    n = number(last["n"])
    pick = people[view.pick % len(people)] if people else None
    facts = [
        f"stage {stage} · round {human(last['round'])} · {count(len(people), 'individual')}, {len(last['front'])} in the front"
    ]
    facts += [f"scored on {human(n)} images"] if n else []
    lines: list[Line] = [[(" " + " · ".join(facts), "bold")]]
    trend: Line = [(" ", "")]
    if volumes:
        trend += [("hypervolume ", "dim"), (draw.spark(volumes, 20), "key"), (f" {volumes[-1]:.3f}   ", "")]
    if spread[-1] is not None:
        trend += [("diversity ", "dim"), (draw.spark(spread, 20), "key"), (f" {spread[-1]:.2f}", "")]
    lines += [trend, *_other_numbers(run, width, view, ("stage", "round", "front", "eval/n"))]
    if not people:
        return [*lines, [(" this round has no individuals", "dim")]]
    listed: list[Line] = []
    kept, rows = last["kept"], []
    extra = [k for k in numeric_keys(people) if k not in ("fid", "is", "params")]
    for k, x in enumerate(people):
        mark = "◆" if x["id"] in last["front"] else " "
        style = "sel" if x is pick else ""
        here = "★" if x is pick else " "
        rows.append(
            [(c, style) for c in (f"{k + 1} {mark}{here}", x["id"], score(x["fid"]), score(x["is"]), human(x["params"]))]
        )
        rows[-1] += [(human(x.get(k)), style) for k in extra]
        rows[-1] += [(c, style or "dim") for c in ("kept" * (x["id"] in kept), fit(x["how"], 18).rstrip())]
    heads = ["rank", "id", label, is_label, "params", *extra, "", "made by"]
    listed = _indent(table(heads, rows, "llrrr" + "r" * len(extra) + "ll", gap=1), 1)
    # an individual that is kept is scored anew each round: only its scores of the last round can be in the front
    shown = [(i, x) for i, r in enumerate(of_stage) for x in r["population"] if x["fid"] is not None]

    def leads(i: int, x: dict) -> bool:
        return i == len(of_stage) - 1 and x["id"] in last["front"]

    if view.near:
        of_last = [(i, x) for i, x in shown if i == len(of_stage) - 1]
        shown = [(i, x) for i, x in of_last if leads(i, x) or x is pick] if any(leads(*of) for of in of_last) else of_last
    pairs = [("fid", "is"), ("fid", "params"), ("params", "is"), *(("fid", k) for k in extra)]
    axes = pairs[view.axes % len(pairs)]
    if axes == ("fid", "is") and all(x["is"] is None for _, x in shown):
        axes = ("fid", "params")
    names = {"fid": label + " ↓", "is": is_label + " ↑", "params": "parameters ↓"} | {k: k for k in extra}
    tall = max(6, min(28, height - 10 if width < 100 else height - 14))
    listing = max(draw.width_of(line) for line in listed) + 3
    wide = width if width < 100 else max(44, width - listing)
    dots = []
    for i, x in sorted(shown, key=lambda of: (leads(*of), of[1] is pick, of[0])):
        if x[axes[0]] is None or x.get(axes[1]) is None:
            continue
        old = ("·", "∘", "○")[min(2, 3 * (i + 1) // len(of_stage))]
        mark, style = ("★", "warn") if x is pick else ("◆", "key") if leads(i, x) else (old, "dim")
        dots.append((x[axes[0]], x[axes[1]], mark, style))
    path = sorted(
        (x[axes[0]], x[axes[1]])
        for x in people
        if x["id"] in last["front"] and x[axes[0]] is not None and x.get(axes[1]) is not None and axes[1] not in extra
    )  # for an extra key, it is not known whether lower or higher is better
    path = _staircase(path, falling=axes == ("fid", "params"))
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
            lines.append([(f"   vs. {line[1]['id']}: {diff}", "")])
        steps = [f"{x['id']} {score(x['fid'])}" for x in reversed(line)]
        lines += [
            [("   lineage  " if i == 0 else "            ", "dim"), (text, "")]
            for i, text in enumerate(wrapped(steps, width - 12, " › "))
        ]
    if _rows(pick["genotype"]):
        net = "G" if str(rounds[-1]["stage"]) == "1" else "D"
        lines += [[], *genotype_table(cells(run, {net: pick["genotype"]}, net), width)]
    return lines


# ---- AdversarialNAS, DEGAS --------------------------------------------------------------------------------------------


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
    lines: list[Line] = [[(" " + " · ".join(facts), "bold")]]
    trend: Line = [(" ", "")]
    for key, label in ((f"entropy {view.net}", "entropy "), (f"flips {view.net}", "  flips ")):
        steps, values = run.search.series.get(key, ([], []))
        values = [v for s, v in zip(steps, values, strict=False) if view.at is None or s <= view.at]
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
    lines += _other_numbers(run, width, view, known)
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


# ---- AutoGAN ----------------------------------------------------------------------------------------------------------


def policy(run: Run, width: int, height: int, view: View) -> list[Line]:
    """AutoGAN: reward and baseline curves, probability and entropy of each decision, the beam."""
    import numpy as np

    i = run.search.at(view.at)
    row = run.search.row(i)
    facts = [f"step {human(number(row.get('step')))}"]
    facts += [f"stage {clean(row.get('stage'), 5)}"] if row.get("stage") is not None else []
    facts += [f"iteration {human(number(row.get('iteration')))}"] if row.get("iteration") is not None else []
    facts += [f"{k} {human(number(row.get(k)))}" for k in ("reward", "baseline") if number(row.get(k)) is not None]
    facts += [f"last: {clean(row.get('kind'), 12)}"] if row.get("kind") else []
    lines: list[Line] = [[(" " + " · ".join(facts), "bold")]]
    lines += _other_numbers(run, width, view, ("stage", "iteration", "reward", "baseline", "entropy", "eval/n"))
    curves = []
    for k, key in enumerate(("reward", "baseline")):
        steps, values = run.search.series.get(key, ([], []))
        values = np.array([v for s, v in zip(steps, values, strict=False) if view.at is None or s <= view.at])
        curves.append(Series(np.arange(1.0, len(values) + 1), values, f"s{k}", key[0]))
    picture, note = draw.chart(curves, min(width, 130), max(6, min(12, height // 3)), empty="no reward yet")
    lines += [[(" r reward · b baseline, over controller updates", "dim"), (f"  {note}", "warn")], *picture, []]
    here = next((r for k in range(i, max(-1, i - 200), -1) if isinstance((r := run.search.row(k)).get("policy"), list)), {})
    options: list[Line] = []
    if here:
        step = human(number(here.get("step")))
        options.append([(" policy", "bold"), (f" at step {step}: probability of each option, entropy in nats", "dim")])
        for k, probs in enumerate(here["policy"][:64]):
            p = [number(v) or 0.0 for v in probs] if isinstance(probs, list) else []
            h = number(get(here.get("entropy"), k))
            h = entropy(dict(enumerate(p))) if h is None else h
            line: Line = [(f"   {fit(clean(get(here, 'decisions', k)) or f'decision {k + 1}', 11)} H {h:4.2f}  ", "")]
            for j, v in enumerate(p):
                word = clean(get(here, "options", k, j), 12) or str(j)
                line.append((f" {word} {draw.shade(v)}{v:.2f}", "key bold" if v == max(p) else "dim"))
            options.append(line)
    beam: list[Line] = []
    kept = next((r for k in range(i, -1, -1) if isinstance((r := run.search.row(k)).get("beam"), list) and r["beam"]), {})
    if kept:
        members = [(k, x) for k, x in enumerate(kept["beam"][:20], 1) if get(x, "vector")]
        net = kept.get("eval/net") or run.last.get("net")
        heads = {
            k: fid_label(net, k.upper()) if k in ("fid", "is") else clean(k, 20) for k in numeric_keys([x for _, x in members])
        }
        show = {key: score if key in ("score", "shared", "is", "fid") else human for key in heads}
        found = [(k, x["vector"], *(show[key](number(x.get(key))) for key in heads)) for k, x in members]
        n = number(kept.get("eval/n"))
        about = f" at step {human(number(kept.get('step')))}" + (f", scored on {human(n)} images" if n else "")
        beam = [[(" beam", "bold"), (about, "dim")]]
        beam += _indent(table(["", "vector", *heads.values()], found, "rl" + "r" * len(heads)))
    if options and beam and (room := width - max(map(draw.width_of, beam)) - 2) > max(map(draw.width_of, options)):
        lines += beside(options, beam, room)
    else:
        lines += [*options, [], *beam]
    window = row.get("window")
    if isinstance(window, dict):
        words = [f"{clean(k, 20)} {human(number(v))}" for k, v in list(window.items())[:6]]
        lines += [[], [(" loss window: " + " · ".join(words), "dim")]]
    return lines


def search(run: Run, width: int, height: int, view: View) -> list[Line]:
    """The search page of the run's method."""
    page = {"evolution": population, "probabilities": probabilities, "controller": policy}.get(run.search.kind)
    if page:
        return page(run, width, height, view)
    if run.search.rows:
        return [[(f" {count(len(run.search.rows), 'row')} in search.jsonl", "bold")], *_other_numbers(run, width, view, ())]
    return [[(" search.jsonl is empty: the search has not started, or this run only trains", "dim")]]


def _other_numbers(run: Run, width: int, view: View, known: tuple[str, ...]) -> list[Line]:
    """The numbers in search.jsonl that the page does not show otherwise: a sparkline and the last value each."""
    texts = []
    for key, (steps, values) in run.search.series.items():
        values = [v for s, v in zip(steps, values, strict=False) if view.at is None or s <= view.at]
        if values and key not in known and not key.startswith("median "):
            texts.append(f"{key} {draw.spark(values, 12)} {human(values[-1])}")
    return [[(" " + text, "dim")] for text in wrapped(texts, width - 2)] if texts else []


# ---- configuration ----------------------------------------------------------------------------------------------------


def configuration(run: Run, width: int, defaults: dict | None = None, at: float | None = None) -> list[Line]:
    """All arguments with differences from the preset, versions, commands, results (unless as of a step), unreadable files."""
    lines: list[Line] = []
    config, defaults = run.config, defaults or {}
    rows: list[Line] = []
    for key, value in sorted(run.args.items(), key=lambda kv: str(kv[0]))[:300]:
        shown, preset = (clean("—" if v is None else v, 60) for v in (value, defaults.get(key, value)))
        differs = preset not in (shown, "—")
        rows.append([(f" {fit(clean(key, 30), 18)} ", ""), (shown, "warn" if differs else "")])
        rows[-1] += [(f"   preset: {preset}", "dim")] if differs else []
    lines += [[(" arguments", "bold"), ("   highlighted: differs from the preset" if defaults else "", "dim")]]
    half = -(-len(rows) // 2) if width >= 100 else len(rows)
    lines += beside(rows[:half], rows[half:], width // 2) if width >= 100 else rows
    facts = [
        (k, clean(config.get(k), 3000)) for k in ("command", "device", "world_size", "created", "data_digest") if config.get(k)
    ]
    facts += [("resume", clean(run.status.get("resume_command"), 300))] if run.status.get("resume_command") else []
    git = config.get("git")
    if isinstance(git, dict):
        facts.append(("git", f"{clean(git.get('sha'), 40)}{' with uncommitted changes' if git.get('dirty') else ''}"))
    for key in ("versions", "params"):
        if isinstance(config.get(key), dict):
            facts.append(
                (
                    key,
                    " · ".join(
                        f"{clean(k, 20)} {human(v) if number(v) is not None else clean(v, 30)}"
                        for k, v in config[key].items()
                        if v
                    ),
                )
            )
    if run.labels or run.tags.get("note"):
        facts.append(("tags", f"{' '.join(run.labels)}  {clean(run.tags.get('note'), 200)}"))
    lines += [[], [(" details", "bold")]]
    for key, text in facts:
        for i, part in enumerate(wrapped(text.split(" "), width - 16, " ")):
            lines.append([(f" {fit(key if i == 0 else '', 13)}", "dim"), (part, "")])
    if run.result and at is not None:
        lines += [[], [(f" result: the run ended after step {human(at)}; esc shows it", "dim")]]
    elif run.result:
        lines += [[], [(" result", "bold")]]
        seconds = run.result.get("seconds")
        for key in ("last", "best"):
            if isinstance(run.result.get(key), dict):
                text = " · ".join(
                    f"{clean(k, 10)} {human(v, 4) if number(v) is not None else clean(v, 20)}"
                    for k, v in run.result[key].items()
                    if v is not None
                )
                lines.append([(f" {fit(key, 13)}", "dim"), (text, "")])
        if isinstance(seconds, dict):
            text = " · ".join(f"{clean(k, 40)} {duration(number(v))}" for k, v in seconds.items())
            lines += [
                [(f" {fit('time' if i == 0 else '', 13)}", "dim"), (part, "")]
                for i, part in enumerate(wrapped(text.split(" · "), width - 16, " · "))
            ]
    if run.problems or run.bad:
        lines += [[], [(" unreadable files", "bold bad")]]
        lines += [[(f" {k}: {v}", "bad")] for k, v in run.problems.items()]
        lines += [[(f" {count(run.bad, 'line')} in metrics.jsonl and search.jsonl", "bad")]] if run.bad else []
    return lines


# ---- comparison -------------------------------------------------------------------------------------------------------


def config_diff(a: Run, b: Run) -> list[tuple[str, object, object]]:
    """Differing arguments, and script, data digest, device and git commit if they differ."""
    found = []
    for key in sorted({*a.args, *b.args}, key=str):
        if a.args.get(key) != b.args.get(key):
            found.append((clean(key, 30), a.args.get(key), b.args.get(key)))
    for key in ("script", "data_digest", "device", "world_size"):
        if a.config.get(key) != b.config.get(key):
            found.append((key, a.config.get(key), b.config.get(key)))
    git = [get(r.config, "git", "sha") for r in (a, b)]
    if git[0] != git[1]:
        found.append(("git", *git))
    return found


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
                rows.append((f"  {what} {label}", *(score(v) for v in pair), "+" * ((delta or 0) > 0) + human(delta, 4), steps))
    lines += _indent(table(["", "A", "B", "A - B", "at step"], rows, "lrrrr", most=60)) if rows else []
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
    lines += _indent(table(["", "A", "B", "Δ"], shown)) if shown else []
    for net in "GD":
        ca, cb = cells(a, a.genotype_at(view.at), net), cells(b, b.genotype_at(view.at), net)
        if ca and cb:
            d, n = hamming(ca, cb)
            same = space_of(a, net) == space_of(b, net)
            told = f"{n - d} of {n} edges equal, Hamming distance {d}" if same else "different search spaces, not comparable"
            lines += [[], [(f" genotype {net}: {told}", "bold")]]
            for letter, mine, other in (("A", ca, cb), ("B", cb, ca)):
                lines += [[(f" {letter} ", "bold"), *line[1:]] for line in genotype_table(mine, width - 3, dict(flat(other)))]
        elif ca or cb:
            lines += [[], [(f" genotype {net}: only in {'A' if ca else 'B'}", "dim")]]
    sizes = []
    for what in ("params", "macs"):
        for net in "GD":
            va, vb = (number(get(r.genotype, what, net)) for r in (a, b))
            if va and vb:
                sizes.append((f"{what} {net}", human(va), human(vb), f"{100 * (va / vb - 1):+.0f}%"))
    lines += [[], [(" size", "bold")], *_indent(table(["", "A", "B", "A vs. B"], sizes, "lrrr"))] if sizes else []
    return lines


def _indent(lines: list[Line], by: int = 3) -> list[Line]:
    return [[(" " * by, ""), *line] for line in lines]


def source_diff(a: Run, b: Run) -> list[Line]:
    """Diff of the source snapshots of two runs."""
    one, two = a.source(), b.source()
    if not one or not two:
        return [[(" cannot compare: a run has no source/", "dim")]]
    lines: list[Line] = []
    for name in sorted({*one, *two}):
        for text in difflib.unified_diff(
            one.get(name, "").splitlines(), two.get(name, "").splitlines(), f"A/{name}", f"B/{name}", lineterm="", n=2
        ):
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
        lines.append([(f" genotype {net}: edges that differ", "bold")])
        lines += _indent(table(["", *numbers, ""], rows, "l" + "r" * len(group)))
    return lines


def seeds(runs: list[Run]) -> list[Line]:
    """Groups of runs that differ only in the seed: mean ± standard deviation of the last scores."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.last.get("fid") is not None:
            groups.setdefault((same_but_seed(run), kind_of(run.last)), []).append(run)
    lines: list[Line] = []
    for (_, (_, net, n, *_)), members in groups.items():
        first, found = members[0], [[r.last[k] for r in members if r.last.get(k) is not None] for k in ("fid", "is")]
        numbers = " ".join(str(r.seed) for r in sorted(members, key=lambda r: r.seed or 0))
        what = [first.method, first.dataset, clean(first.config.get("preset")), f"seeds {numbers}"]
        what.append(f"{human(n)} images" if n else "")
        lines.append([(" " + " · ".join(w for w in what if w), "bold")])
        scores = [f"{fid_label(net, k)} {spread(values)}" for k, values in zip(("FID", "IS"), found, strict=True) if values]
        lines.append([("   " + "   ".join(scores), "")])
    return lines


def spread(values: list[float]) -> str:
    if not values:
        return "—"
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
