"""Text output: --plain for pipes and screen readers, --json for programs, CSV, Markdown and LaTeX tables, an HTML report."""

import base64
import contextlib
import csv
import html
import io
import json
import math
from collections.abc import Iterable
from typing import Any

from ui import curves, genotypes, pages
from ui.draw import count, duration, human, plain, score, size, ticks
from ui.files import clean, number, read_bytes
from ui.launch import Machine
from ui.runs import LIVE, STATES, Run, Store, fid_label, kind_of
from ui.view import View


def summary(runs: Iterable[Run]) -> str:
    """`5 runs: 1 running, 3 done, 1 failed`."""
    states = [r.state for r in runs]
    parts = [f"{states.count(s)} {s}" for s in STATES if s in states]
    return f"{count(len(states), 'run')}{': ' if parts else ''}{', '.join(parts)}"


def trend(run: Run) -> str:
    """The trend of the FID over the last evaluations, in words."""
    kind = kind_of(run.last)
    fids = [e["fid"] for e in run.evaluations() if kind_of(e) == kind and e["fid"] is not None]
    if len(fids) < 2:
        return ""
    first, last, n = fids[-5:][0], fids[-1], min(5, len(fids))
    way = f"{'falling' if last < first else 'rising' if last > first else 'flat'} over the last {n} evaluations"
    return f"{fid_label(kind[1])} {way}, from {score(first)} to {score(last)}, lowest {score(min(fids))}"


def plain_lines(store: Store, runs: list[Run], machine: Machine | None = None) -> list[str]:
    """One line per run, followed by indented lines for error, trend, tags and unreadable files."""
    lines = [f"{store.root}: {store.problem or summary(runs)}"]
    for run in runs:
        step = f"step {human(run.step)}" + (f" of {human(run.total)}" if run.total else "") if run.step is not None else ""
        seed = f"seed {run.seed}" if run.seed is not None else ""
        facts = [run.method, run.dataset, seed, run.phase, step, pages.scores(run)]
        facts += [f"{duration(run.eta)} left"] if run.eta is not None else []
        facts += [f"memory {size(run.memory)}"] if run.memory else []
        state = run.state + (f" ({run.why})" if run.why else "")
        lines.append(f"{state:<10} {clean(run.name)}  " + ", ".join(f for f in facts if f))
        for more in (run.error, trend(run), f"tags: {' '.join(run.labels)}" if run.labels else ""):
            lines += [f"{'':<10} {more}"] if more else []
        problems = [f"{k} {v}" for k, v in run.problems.items()] + ([count(run.bad, "unreadable line")] if run.bad else [])
        lines += [f"{'':<10} cannot read: {', '.join(problems)}"] if problems else []
    if machine:
        lines += [f"GPU {g['index']} {g['name']}: {', '.join(gpu_facts(g))}" for g in machine.gpus]
        lines += [text for text in (machine.gpu_note, ", ".join(host_facts(machine))) if text]
    return lines


DONE, FAILED, RUNNING, NONE = 0, 1, 3, 4  # exit codes of --json; 2 is a wrong command line, as everywhere


def exit_code(runs: list[Run]) -> int:
    """NONE: no run. RUNNING: at least one is queued or running. FAILED: else, at least one is not done. DONE: all are."""
    states = {r.state for r in runs} - {"log"}
    return NONE if not runs else RUNNING if states & {"queued", *LIVE} else DONE if states <= {"done"} else FAILED


def runs_json(store: Store, runs: list[Run]) -> str:
    """The runs for programs. `schema` rises when a key changes its meaning or goes; docs/tui.md lists the keys."""
    from common.files import finite

    made = {"schema": 1, "root": str(store.root), "problem": store.problem or None, "runs": [_facts(r) for r in runs]}
    return json.dumps(finite(made), indent=1, default=str, allow_nan=False)


def _facts(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": run.name, "path": str(run.path), "state": run.state, "why": run.why, "error": run.error}
    facts |= {"method": run.method, "script": run.script, "dataset": run.dataset, "seed": run.seed, "phase": run.phase}
    facts |= {"step": run.step, "total": run.total, "rate": run.rate, "eta_s": run.eta, "memory": run.memory}
    facts |= {"last": run.last or None, "best": run.best() or None, "tags": run.labels, "args": run.args}
    return {k: None if v == "" else v for k, v in facts.items()}


def gpu_facts(g: dict) -> list[str]:
    """97%, 62.1G/139G, 71 °C, 540 W."""
    facts = [f"{g['percent']}%" if g["percent"] is not None else "", f"{size(g['used'])}/{size(g['total'])}"]
    facts += [f"{g['degrees']} °C" if g["degrees"] is not None else "", f"{g['watts']:.0f} W" if g["watts"] else ""]
    return [fact for fact in facts if fact]


def host_facts(machine: Machine) -> list[str]:
    if not (h := machine.host):
        return []
    return [
        f"CPU {h['cpu']:.0f}% of {h['cores']:.0f}",
        f"RAM {size(h['used'])}/{size(h['total'])}",
        f"disk {size(h['disk'])} free",
    ]


def metrics_csv(runs: Iterable[Run]) -> str:
    """All values in metrics.jsonl, one per row: run, metric, step, seconds, value (empty if not finite)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", "step", "seconds", "value"])
    for run in runs:
        run.load_all()
        for metric in run.columns.keys:
            for step, t, value in zip(*(c.tolist() for c in run.column(metric)), strict=True):
                writer.writerow([clean(run.name), metric, _exact(step), _exact(t), _exact(value)])
    return out.getvalue()


def _exact(x: float) -> str:
    return "" if not math.isfinite(x) else str(int(x)) if x == int(x) and abs(x) < 2**53 else repr(x)


def row(run: Run) -> dict[str, str]:
    """A run's row in a results table, by column."""
    last, cells = run.last, {"run": clean(run.name), "method": run.method, "dataset": run.dataset}
    cells["seed"] = "" if run.seed is None else str(run.seed)
    if last:
        std = f" ± {last['is_std']:.2f}" if last.get("is_std") is not None else ""
        cells[fid_label(last["net"], "IS") + " ↑"] = score(last.get("is")) + std
        cells[fid_label(last["net"]) + " ↓"] = score(last.get("fid"))
        cells["images"] = human(number(last.get("n")))
    return cells | {"step": human(last.get("step") or run.step), "state": run.state}


def tables(runs: Iterable[Run]) -> list:
    """One table per scoring network, because their scores are not comparable."""
    from common.report import Table

    groups: dict[tuple, list[list[str]]] = {}
    for run in runs:
        cells = row(run)
        groups.setdefault(tuple(cells), []).append(list(cells.values()))
    return [Table("", list(head), rows) for head, rows in groups.items()]


def markdown(runs: Iterable[Run]) -> str:
    from common.report import markdown_lines

    return "\n\n".join("\n".join(markdown_lines(t)) for t in tables(runs)) + "\n"


def latex(runs: Iterable[Run]) -> str:
    """Rows of a LaTeX table, with the head as a comment."""
    from common.report import tex

    made = []
    for t in tables(runs):
        head, *rows = [" & ".join(map(tex, cells)) + " \\\\\n" for cells in (t.head, *t.rows)]
        made.append("% " + head + "".join(rows))
    return "\n".join(made)


COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00", "#666666"]
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #d5dae0;text-align:left}
pre{background:#f3f5f7;padding:1em;overflow-x:auto;font:12px/1.35 ui-monospace,monospace}
img{image-rendering:pixelated;max-width:100%}"""


def html_report(runs: list[Run], title: str) -> str:
    """A self-contained HTML report of some runs: scores, curves, samples, architectures, configurations."""
    body = [f"<h1>{_h(title)}</h1>"]
    for t in tables(runs):
        cells = [[f"<{tag}>{_h(c)}</{tag}>" for c in row] for tag, row in (("th", t.head), *(("td", row) for row in t.rows))]
        body.append("<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table>")
    every = dict.fromkeys(m for r in runs for m in curves.metrics(r))
    for metric in [m for m in every if curves.is_score(m) or m.startswith("loss/")][:12]:
        having = [(COLORS[i % 8], r.name, *curves.points(r, metric)) for i, r in enumerate(runs) if metric in curves.metrics(r)]
        body.append(f"<h3>{_h(metric)} over step</h3>{curves_svg(having)}")
    for run in runs:
        body.append(f"<h2>{_h(run.name)}</h2><p>{_h(pages.state_word(run))} {_h(run.error)}</p>")
        for step, path in run.files("samples", ".png")[-1:]:
            with contextlib.suppress(OSError):
                if (data := read_bytes(path, 8 << 20)).startswith(b"\x89PNG\r\n\x1a\n"):
                    image = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                    body.append(f'<p>Samples at step {step}:<br/><img alt="samples" src="{image}"/></p>')
        for name, lines in (
            ("Architecture", genotypes.architecture(run, 110, 60, View())),
            ("Search", pages.search(run, 110, 40, View())),
            ("Configuration", pages.configuration(run, 110)),
        ):
            body.append(f"<h3>{name}</h3><pre>{_h(chr(10).join(plain(line) for line in lines))}</pre>")
    head = f'<meta charset="utf-8"/><title>{_h(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{chr(10).join(body)}</body></html>\n'


def _h(text: object) -> str:
    return html.escape("\n".join(clean(part, 10_000) for part in str(text).split("\n")))


def curves_svg(curves: list[tuple], width: int = 900, height: int = 260) -> str:
    """Curves (colour, name, x, y) as an SVG chart."""
    good = [(c, n, [(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True) if math.isfinite(a)]) for c, n, x, y in curves]
    values = [(a, b) for _, _, points in good for a, b in points if math.isfinite(b)]
    if not values:
        return "<p>no values</p>"
    x0, x1 = min(a for a, _ in values), max(a for a, _ in values)
    y0, y1 = min(b for _, b in values), max(b for _, b in values)
    x1, y1 = x1 if x1 > x0 else x0 + 1, y1 if y1 > y0 else y0 + 1
    px = lambda a: 60 + (a - x0) / (x1 - x0) * (width - 70)  # noqa: E731
    py = lambda b: 10 + (y1 - b) / (y1 - y0) * (height - 60)  # noqa: E731
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="100%" font-size="11">']
    for t in ticks(y0, y1, 5):
        parts.append(f'<path d="M60 {py(t):.1f}H{width - 10}" stroke="#e2e6ea"/>')
        parts.append(f'<text x="54" y="{py(t) + 4:.1f}" text-anchor="end">{human(t)}</text>')
    for t in ticks(x0, x1, 8):
        parts.append(f'<text x="{px(t):.1f}" y="{height - 34}" text-anchor="middle">{human(t)}</text>')
    for k, (color, name, dots) in enumerate(good):
        path, pen = "", "M"
        for a, b in dots[:: max(1, len(dots) // 2000)]:
            if math.isfinite(b):
                path, pen = f"{path}{pen}{px(a):.1f} {py(b):.1f}", "L"
            else:
                pen = "M"
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        x, y = 60 + 280 * (k % 3), height - 18 + 13 * (k // 3)
        parts.append(f'<text x="{x}" y="{y}" fill="{color}">{_h(clean(name, 44))}</text>')
    return "".join(parts) + "</svg>"
