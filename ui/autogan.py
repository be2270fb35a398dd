"""AutoGAN's page: reward, policy, beam."""

from ui import draw, np
from ui.curves import other_numbers
from ui.draw import Line, Series, beside, fit, human, indent, score, table
from ui.files import clean, get, number
from ui.runs import Run, fid_label
from ui.search import entropy, numeric_keys
from ui.view import View


def policy(run: Run, width: int, height: int, view: View) -> list[Line]:
    """AutoGAN: reward and baseline curves, probability and entropy of each decision, the beam."""
    i = run.search.at(view.at)
    row = run.search.row(i)
    shown = ("step", "stage", "iteration", "reward", "baseline")
    facts = [f"{k} {human(v)}" for k in shown if (v := number(row.get(k))) is not None]
    facts += [f"last: {clean(row.get('kind'), 12)}"] if row.get("kind") else []
    lines = draw.hanging(" ", facts, width, " · ", "bold")
    lines += other_numbers(run, width, view, ("stage", "iteration", "reward", "baseline", "entropy", "eval/n"))
    curves = []
    for k, key in enumerate(("reward", "baseline")):
        values = np.array(run.search.until(key, view.at), float)
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
        heads = {k: clean(k, 20) for k in numeric_keys([x for _, x in members])}
        heads |= {k: fid_label(net, k.upper()) for k in ("fid", "is") if k in heads}
        show = {key: score if key in ("score", "shared", "is", "fid") else human for key in heads}
        found = [(k, x["vector"], *(show[key](number(x.get(key))) for key in heads)) for k, x in members]
        n = number(kept.get("eval/n"))
        about = f" at step {human(number(kept.get('step')))}" + (f", scored on {human(n)} images" if n else "")
        beam = [[(" beam", "bold"), (about, "dim")]]
        beam += indent(table(["", "vector", *heads.values()], found, "rl" + "r" * len(heads)))
    if options and beam and (room := width - max(map(draw.width_of, beam)) - 2) > max(map(draw.width_of, options)):
        lines += beside(options, beam, room)
    else:
        lines += [*options, [], *beam]
    for i, x in enumerate(kept["beam"][:20] if kept else ()):
        words = run.search.in_words(get(x, "vector"))
        lines += draw.hanging(f"   {i + 1:>2} ", words.split(" · "), width, " · ")
    if isinstance(window := row.get("window"), dict):
        words = [f"{clean(k, 20)} {human(number(v))}" for k, v in list(window.items())[:6]]
        lines += [[], *draw.hanging(" loss window: ", words, width, " · ")]
    return lines
