"""The contents of a run's tabs as lines of text: header, signs of health, search, configuration, samples.

The keys in search.jsonl decide which search page is shown, so copies of a script get it too.
"""

import contextlib
import io
from pathlib import Path

from ui import draw, np
from ui.autogan import policy
from ui.curves import other_numbers, points
from ui.draw import Line, beside, count, crop, duration, fit, hanging, human, score, wrapped
from ui.eagan import population
from ui.files import clean, get, number, read_bytes
from ui.genotypes import idle
from ui.probabilities import probabilities
from ui.runs import Run, fid_label
from ui.search import edges
from ui.view import View

GLYPHS = {
    **{"queued": "○", "starting": "◌", "running": "●", "paused": "‖", "stalled": "⚠", "stopping": "◍"},
    **{"done": "✓", "stopped": "■", "failed": "✗", "lost": "?", "log": "≡"},
}
STYLES = {
    **{"queued": "dim", "starting": "info", "running": "good", "paused": "warn", "stalled": "warn", "stopping": "warn"},
    **{"done": "good", "stopped": "info", "failed": "bad", "lost": "bad", "log": "dim"},
}
TITLES = {"evolution": "Population", "probabilities": "Probabilities", "controller": "Policy"}


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
    done = round((share or 0.0) * room) if room > 5 else 0
    second: Line = [(left, tone), ("━" * done, "key"), ("━" * (room - done if room > 5 else 0), "faint"), (right, "")]
    best = run.best(at)
    third = [f" {scores(run, at) or 'not evaluated' + ' yet' * (run.live or at is not None)}"]
    third += [f"best {score(best['fid'])} at step {human(best['step'])}"] if best else []
    third += [f"memory {draw.size(run.memory)}"] if run.memory and at is None else []
    third += [count(run.bad, "unreadable line")] if run.bad else []
    third += [f"cannot read {', '.join(f'{k} ({v})' for k, v in run.problems.items())}"] if run.problems else []
    if run.error and at is None:
        third = [f" {run.error}", *third[:1]]
    return [first, second, [(fit(" · ".join(third), width), "bad" if (run.error and at is None) or run.problems else "")]]


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


def varieties(run: Run) -> list[float | None]:
    """Sample variety (draw.variety) of the first, middle and last grid."""
    files = [path for _, path in run.files("samples", ".png")]
    wanted = list(dict.fromkeys([*files[:1], *files[len(files) // 2 :][:1], *files[-1:]]))
    for path in wanted:
        if path not in run.varieties:
            run.varieties[path] = None
            with contextlib.suppress(ValueError):
                run.varieties[path] = draw.variety(open_image(path))
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


def search(run: Run, width: int, height: int, view: View) -> list[Line]:
    """The search page of the run's method."""
    page = {"evolution": population, "probabilities": probabilities, "controller": policy}.get(run.search.kind)
    if page:
        return page(run, width, height, view)
    if run.search.rows:
        return [[(f" {count(len(run.search.rows), 'row')} in search.jsonl", "bold")], *other_numbers(run, width, view, ())]
    return [[(" search.jsonl is empty: the search has not started, or this run only trains", "dim")]]


def configuration(run: Run, width: int, defaults: dict | None = None, at: float | None = None) -> list[Line]:
    """All arguments with differences from the preset, versions, commands, results (unless as of a step), unreadable files."""
    defaults, rows = defaults or {}, list[Line]()
    for key, value in sorted(run.args.items(), key=lambda kv: str(kv[0]))[:300]:
        shown, preset = (clean("—" if v is None else v, 60) for v in (value, defaults.get(key, value)))
        differs = preset not in (shown, "—")
        rows.append([(f" {fit(clean(key, 30), 18)} ", ""), (shown, "warn" if differs else "")])
        rows[-1] += [(f"   preset: {preset}", "dim")] if differs else []
    lines: list[Line] = [[(" arguments", "bold"), ("   highlighted: differs from the preset" if defaults else "", "dim")]]
    half = -(-len(rows) // 2)
    lines += beside(rows[:half], rows[half:], width // 2) if width >= 100 else rows
    lines += [[], [(" details", "bold")]]
    for key, text in _details(run):
        lines += hanging(f" {fit(key, 13)}", text.split(" "), width)
    if run.result and at is not None:
        lines += [[], [(f" result: the run ended after step {human(at)}; esc shows it", "dim")]]
    elif run.result:
        lines += _result(run, width)
    if run.problems or run.bad:
        lines += [[], [(" unreadable files", "bold bad")]]
        lines += [[(f" {k}: {v}", "bad")] for k, v in run.problems.items()]
        lines += [[(f" {count(run.bad, 'line')} in metrics.jsonl and search.jsonl", "bad")]] if run.bad else []
    return lines


def _details(run: Run) -> list[tuple[str, str]]:
    """Command, versions, commit, tags: [(name, text)]."""
    config = run.config
    keys = ("command", "device", "world_size", "created", "data_digest")
    facts = [(k, clean(config.get(k), 3000)) for k in keys if config.get(k)]
    facts += [("resume", clean(run.status.get("resume_command"), 300))] if run.status.get("resume_command") else []
    git = config.get("git")
    if isinstance(git, dict):
        facts.append(("git", f"{clean(git.get('sha'), 40)}{' with uncommitted changes' if git.get('dirty') else ''}"))
    for key in ("versions", "params"):
        facts += [(key, text)] if (text := " · ".join(named(config.get(key)))) else []
    if run.labels or run.tags.get("note"):
        facts.append(("tags", f"{' '.join(run.labels)}  {clean(run.tags.get('note'), 200)}"))
    return facts


def named(value: object, most: int = 40) -> list[str]:
    """`name number` or `name text` for what a dict holds and is not null."""
    items = list(value.items())[:most] if isinstance(value, dict) else []
    return [f"{clean(k, 20)} {human(v, 4) if number(v) is not None else clean(v, 30)}" for k, v in items if v is not None]


def _result(run: Run, width: int) -> list[Line]:
    """result.json: last and best scores, and where the time went."""
    lines: list[Line] = [[], [(" result", "bold")]]
    for key in ("last", "best"):
        lines += hanging(f" {fit(key, 13)}", named(run.result.get(key)), width, " · ")
    seconds = run.result.get("seconds")
    spent = [f"{clean(k, 40)} {duration(number(v))}" for k, v in seconds.items()] if isinstance(seconds, dict) else []
    return lines + hanging(f" {fit('time', 13)}", spent, width, " · ")


def open_image(path: Path) -> "np.ndarray":
    """A PNG as (H, W, 3) uint8. ValueError: not a PNG, or larger than 16 megapixels or 32 MB."""
    from PIL import Image

    try:
        data = read_bytes(path, 32 << 20)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size[0] * image.size[1] > 16 << 20:
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
            return np.asarray(image.convert("RGB"))
    except ValueError:
        raise
    except Exception as e:  # the decoder may raise anything on a broken file
        raise ValueError(clean(e, 80) or type(e).__name__) from None


def sample_at(run: Run, at: float | None) -> tuple[int, Path] | None:
    """(step, path) of the latest sample grid at or before step `at`."""
    return next((f for f in reversed(run.files("samples", ".png")) if at is None or f[0] <= at), None)


def sample_lines(run: Run, at: float | None, width: int, height: int, across: int, images: bool) -> list[Line]:
    """The latest sample grid at or before step `at`, under a line that describes it."""
    files, found = run.files("samples", ".png"), sample_at(run, at)
    if not found:
        return [[(" no samples" + (" yet" * run.live if not files else f" up to step {human(at)}"), "dim")]]
    step, path = found
    try:
        image = open_image(path)
    except ValueError as e:
        return [[(f" cannot display {path.name}: {e}", "bad")]]
    n, _ = draw.grid_of(image)
    facts = f" step {human(step)} · {files.index(found) + 1} of {len(files)} · {image.shape[1]} x {image.shape[0]} pixels"
    facts += f" · {min(n, across)} of {n} per row" if n > 1 else ""
    hint = "   + - size   , . step   * best"
    head: Line = [(facts, "bold"), (hint if len(facts + hint) < width else "", "dim")]
    if not images:
        return [head, [], [(f" colours are off (NO_COLOR); open {path}", "dim")]]
    if width < 60:
        head = [(f" step {human(step)}", "bold")]
    return [crop(head, width), *draw.half_blocks(image, width - 1, height - 1, across)]
