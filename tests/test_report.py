"""common/report.py: from run directories to groups, comparisons, tables and pictures."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from scipy import stats

from common import report
from common.files import UserError
from common.report import Kind, grouped, main, read, scores

ROOT = Path(__file__).parents[1]
KIND = Kind("last", "compact", 100, "tiny 64", True, "running")
SECONDS = {"start": 0.5, "preparing the evaluator": 2.5, "search": 10.0, "search evaluation": 1.0, "candidate 1 scoring": 2.0}
SECONDS |= {"training": 20.0, "evaluation (last)": 4.0}


def made(folder: Path, seed: int, fid: float | None = 2.0, **more: object) -> Path:
    """A run directory. more: flags, or `config`, `result` and `last` that add to those files; result=None: no result."""
    path = folder / f"nas-tiny-s{seed}-{len(list(folder.glob('*')))}"
    path.mkdir(parents=True)
    own = {name: more.pop(name, {}) for name in ("config", "result", "last", "row")}
    args = {"seed": seed, "phase": "all", "search": "ours", "g_lr": 1e-3, "runs_dir": str(folder), **more}
    config = {"script": "nas.py", "dataset": "tiny", "data_digest": "d1", "seed": seed, "args": args, "command": "python"}
    config |= {"git": {"sha": "abc", "dirty": False}, "versions": {"torch": "2.11"}, "device": "CPU", "world_size": 1}
    write(path / "config.json", {**config, **own["config"]})
    last = {"fid": fid, "is": 1.5, "is_std": 0.1, "step": 8, "n": 100, "net": "compact", "ref": "tiny 64", **own["last"]}
    if own["result"] is not None:
        write(path / "result.json", {"last": last, "seconds": SECONDS, "peak_mem": 5e6, **own["result"]})
    write(path / "status.json", {"state": "failed", "error": {"message": "training diverged"}})
    write(path / "genotype.json", {"params": {"G": 1000}, "macs": {"G": 5000}})
    (path / "source").mkdir()
    row = {"phase": "eval", "eval/net": "compact", "eval/n": 100, "eval/ref": "tiny 64", "eval/ema": True, "eval/bn": "running"}
    row |= own["row"]
    rows = [{"step": step, "t": 10.0 * step + seed, **row, "eval/fid": fid and fid + 8 - step} for step in (0, 4, 8)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))


def of(paths: list[Path], **more: object) -> dict:
    """The report of some runs."""
    return report.report(grouped([read(p) for p in paths], **more))


def row_of(found: dict, group: str, score: str = "fid") -> dict:
    (row,) = [r for r in found["scores"] if (r["group"], r["score"]) == (group, score)]
    return row


def two_arms(folder: Path, ours: tuple, other: tuple) -> list[Path]:
    return [made(folder, i, fid) for i, fid in enumerate(ours)] + [
        made(folder, i, fid, search="random") for i, fid in enumerate(other)
    ]


def test_no_torch_is_imported() -> None:
    code = "import sys, common.report; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'matplotlib', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- numbers ---------------------------------------------------------------------------------------


def test_a_comparison_has_welchs_interval_and_a_sign_that_means_better() -> None:
    c = report.comparison([1.0, 2.0, 3.0], [4.0, 5.0, 9.0])
    assert c["found"] == (2, 1)
    assert c["random"] == (6, pytest.approx(7**0.5))
    assert c["improvement"] == pytest.approx(4 / 6)  # a lower FID is better
    half = stats.t.ppf(0.975, 2.56) * (1 / 3 + 7 / 3) ** 0.5  # degrees of freedom: (8/3)² / ((1/3)² / 2 + (7/3)² / 2)
    assert c["interval"] == pytest.approx((4 - half, 4 + half))
    assert not c["decided"]
    assert report.comparison([1.0, 2.0, 3.0], [4.0, 5.0, 9.0], higher=True)["improvement"] == pytest.approx(-4 / 6)
    assert report.comparison([1.0, 1.1, 1.2], [4.0, 4.1, 4.2])["decided"]
    worse = report.comparison([4.0, 4.1, 4.2], [1.0, 1.1, 1.2])
    assert worse["decided"]
    assert worse["interval"][1] < 0
    same = report.comparison([1.0, 1.0], [1.0, 1.0])  # without any spread nothing is decided
    assert (same["interval"], same["decided"], same["improvement"]) == (None, False, 0)
    assert report.comparison([1.0, 2.0], [-1.0, 1.0])["improvement"] is None  # a mean of zero


def test_from_five_seeds_on_a_mean_has_an_interval() -> None:
    four, five = report.summary([1.0, 2.0, 3.0, 4.0]), report.summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert four["interval"] is None
    assert (five["mean"], five["sd"]) == (3, pytest.approx(2.5**0.5))
    half = 2.7764451 * (2.5 / 5) ** 0.5  # Student's t, 4 degrees of freedom
    assert five["interval"] == pytest.approx((3 - half, 3 + half))
    assert report.summary([1.0, None]) == {"n": 1, "mean": 1, "sd": None, "interval": None}
    assert report.summary([None]) == {"n": 0, "mean": None, "sd": None, "interval": None}


# ---- groups ----------------------------------------------------------------------------------------


def test_runs_that_differ_in_the_seed_only_are_a_group_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    paths = [made(tmp_path, seed, device=f"cuda:{seed}", log_every=seed) for seed in (2, 0, 1)]
    (group,) = grouped([read(p) for p in paths])
    assert [run.seed for run in group.runs] == [0, 1, 2]


@pytest.mark.parametrize("change", ["g_lr", "new_flag"])
def test_another_difference_is_refused_by_its_name(change: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(made(tmp_path, 0)), str(made(tmp_path, 1, **{change: 2}))]) == 2
    out = capsys.readouterr()
    assert (out.out, out.err.count("\n")) == ("", 1)
    assert change in out.err


def test_runs_on_other_images_are_a_group_of_their_own(tmp_path: Path) -> None:
    runs = [read(made(tmp_path, 0)), read(made(tmp_path, 1, config={"data_digest": "d2"}))]
    assert [g.name for g in grouped(runs)] == ["nas on tiny", "nas on tiny, images d2"]


def test_by_makes_a_group_of_each_value_and_may_differ_none(tmp_path: Path) -> None:
    runs = [read(made(tmp_path, seed, g_lr=g_lr)) for g_lr in (1e-3, 2e-3) for seed in range(2)]
    groups = grouped(runs, by=["--g-lr"])
    assert [[run.seed for run in g.runs] for g in groups] == [[0, 1], [0, 1]]
    assert "0.002" in groups[1].name
    random = [read(made(tmp_path, 0, g_lr=g_lr, search="random")) for g_lr in (1e-3, 2e-3)]
    compared = [(g.name, g.baseline.name) for g in grouped([*runs, *random], by=["g_lr"]) if g.baseline]
    assert compared == [(f"nas, g_lr {x}", f"nas (random), g_lr {x}") for x in (0.001, 0.002)]
    (group,) = grouped(runs[:1] + runs[3:], may_differ=["g_lr"])
    assert any("g_lr" in note for note in report.notes(group))
    for wrong, by, named in ((runs, ["g_rl"], "g_rl"), ([runs[1], runs[1]], [], "seed 1")):  # a seed that is there twice
        with pytest.raises(UserError, match=named):
            grouped(wrong, by=by)


def test_the_random_arm_is_known_by_its_flags(tmp_path: Path) -> None:
    groups = grouped([read(p) for p in two_arms(tmp_path, (1.0,), (2.0,))])
    assert [(g.random, g.baseline and g.baseline.random) for g in groups] == [(False, True), (True, None)]
    alone = made(tmp_path, 0, random_arch=True, config={"script": "degas.py"})
    assert grouped([read(alone)])[0].random
    both = [*two_arms(tmp_path / "more", (1.0,), (2.0,)), made(tmp_path, 0, search="random-shared")]
    with pytest.raises(UserError, match="--baseline"):
        grouped([read(p) for p in both])


def test_a_baseline_is_one_group_of_the_same_images(tmp_path: Path) -> None:
    ours, base = read(made(tmp_path, 0)), read(made(tmp_path, 0, config={"script": "other.py"}))
    groups = grouped([ours], baseline=[base])
    assert groups[0].baseline is groups[1]
    assert any("script" in note for note in report.notes(groups[0]))  # what the arms differ in
    same_method = grouped([ours], baseline=[read(made(tmp_path, 0, g_lr=3.0))])  # as of EAGAN, which has no random arm
    assert [g.baseline is not None for g in same_method] == [True, False]
    with pytest.raises(UserError, match="--baseline"):
        grouped([ours], baseline=[base, read(made(tmp_path, 0, config={"script": "third.py"}))])
    with pytest.raises(UserError, match="images"):
        grouped([ours], baseline=[read(made(tmp_path, 0, config={"data_digest": "d2"}))])


# ---- scores ----------------------------------------------------------------------------------------


def test_each_seeds_value_mean_and_comparison(tmp_path: Path) -> None:
    ours, other = (1.0, 1.1, 1.2, 1.3, 1.4), (4.0, 4.1, 4.2)
    found = of(two_arms(tmp_path, ours, other))
    row = row_of(found, "nas")
    assert (row["values"], row["seeds"], row["mean"]) == (list(ours), [0, 1, 2, 3, 4], pytest.approx(1.2))
    assert row["kind"] == KIND._asdict()
    expected = report.comparison(ours, other)
    assert row["against"]["interval"] == expected["interval"]
    assert row["against"]["improvement"] == pytest.approx(2.9 / 4.1)
    assert row["against"]["decided"]
    assert row_of(found, "nas (random)")["against"] is None
    assert not row_of(found, "nas", "is")["against"]["decided"]  # 1.5 everywhere


def test_scores_of_another_kind_stand_in_another_row_and_are_not_compared(tmp_path: Path) -> None:
    changes = [
        {},
        {"last": {"n": 50}},
        {"last": {"ref": "tiny 32"}},
        {"row": {"eval/ema": False}},
        {"row": {"eval/bn": "batch"}},
    ]
    changes += [{"last": {"net": "inception-768"}}, {"result": {"best": {"fid": 1.0, "n": 100, "net": "compact", "step": 4}}}]
    found = of([made(tmp_path / "ours", seed, **change) for seed, change in enumerate(changes)])
    rows = [row for row in found["scores"] if row["score"] == "fid"]
    assert [row["n"] for row in rows] == [2, 1, 1, 1, 1, 1, 1]
    assert {row["label"] for row in rows} == {"FID(compact)", "FID-768"}
    arms = [made(tmp_path, i, 1.0 + 8 * random, search="random" if random else "ours", last={"n": 100 - 50 * random})
            for random in (False, True) for i in range(3)]  # fmt: skip
    assert all(row["against"] is None for row in of(arms)["scores"])


def test_whatever_numeric_score_there_is_is_taken(tmp_path: Path) -> None:
    last = {"kid": 0.0123, "kid_se": 0.001, "coverage": 0.5, "novelty": 3, "chosen": "last", "averaged": True}
    others = {"genotype": {"params": {"G": 7}, "n": 2}, "limits": {"low": 1.0}}  # of result.json: no scores
    (values,) = scores(read(made(tmp_path, 0, last=last, result=others))).values()
    assert values == {"fid": 2.0, "is": 1.5, "kid": 0.0123, "coverage": 0.5, "novelty": 3.0}
    arms = [made(tmp_path, i, last={"kid": 0.01 * i, "novelty": i, "coverage": i}) for i in (1, 2)]
    arms += [made(tmp_path, i, last={"kid": 1.0 * i, "novelty": i, "coverage": 3 * i}, search="random") for i in (1, 2)]
    found = of(arms)
    assert row_of(found, "nas", "kid")["against"]["improvement"] > 0.9
    assert row_of(found, "nas", "coverage")["against"]["improvement"] < 0
    assert row_of(found, "nas", "novelty")["against"]["improvement"] is None


def test_a_score_that_is_not_finite_or_missing_is_said_and_decides_nothing(tmp_path: Path) -> None:
    paths = [*two_arms(tmp_path, (1.0, 1.1, None), (4.0, 4.1, 4.2)), made(tmp_path, 3, result=None)]
    found = of(paths)
    row = row_of(found, "nas")
    assert (row["values"], row["n"], row["mean"]) == ([1.0, 1.1, None, None], 2, pytest.approx(1.05))
    assert row["state"][2:] == ["not finite", "no result"]
    assert (row["against"]["decided"], row["against"]["interval"]) == (False, None)
    assert {"2", "3"} <= {note.split()[1].strip(":") for g in found["groups"] for note in g["notes"]}
    (lost,) = [note for g in found["groups"] for note in g["notes"] if note.startswith("seed 3")]
    assert "training diverged" in lost
    for text in report.FORMATS.values():
        assert text(found)


def test_a_search_alone_has_seconds_and_warnings_but_no_scores(tmp_path: Path) -> None:
    path = made(tmp_path, 0, phase="search", result={"last": None})
    (path / "search.jsonl").write_text('{"warning": "alpha has no gradient"}\n{"step": 2}\n')
    found = of([path])
    assert (found["scores"], found["groups"][0]["runs"][0]["seconds"]["search"]) == ([], 10)
    assert report.markdown(found)
    assert ["1 of 2" in note for note in found["groups"][0]["notes"] if "alpha has no gradient" in note] == [True]


# ---- costs and the checklist -----------------------------------------------------------------------


def test_seconds_of_search_validation_and_training(tmp_path: Path) -> None:
    run = read(made(tmp_path, 0))
    expected = {"search": 10, "validation": 7, "training": 20, "preparation": 3, "sum": 40}
    assert report.seconds(run) == expected
    assert (report.size(run, "params"), report.size(run, "macs"), report.size(run, "params", "D")) == (1000, 5000, None)
    weights = read(made(tmp_path, 1, phase="eval", weights="runs/a/weights.best.pt"))
    assert [kind.weights for kind in scores(weights)] == ["weights.best.pt"]
    run.result["seconds"] = {"training": 20.0}
    assert report.seconds(run) == {"search": None, "validation": None, "training": 20, "preparation": None, "sum": 20}


def answers(paths: list[Path], **more: object) -> dict[int, str]:
    return {p["point"]: p["answer"] for p in of(paths, **more)["checklist"]}


def test_the_checklist_has_14_points_and_answers_by_the_runs(tmp_path: Path) -> None:
    whole = answers(two_arms(tmp_path, (1.0, 2.0), (1.0, 2.0)))
    author = {3, 5, 10, 12}
    assert whole == {i: report.AUTHOR if i in author else "shown" for i in range(1, 15)}
    other_commit = made(tmp_path / "other", 0, config={"git": {"sha": "def"}}, last={"n": 50})
    (other_commit / "metrics.jsonl").unlink()
    (other_commit / "source").rmdir()
    one = answers([other_commit, made(tmp_path / "one", 1, result=None)])
    assert {i for i, answer in one.items() if answer == "not shown"} == {1, 2, 4, 7, 8, 11, 13}
    assert answers([made(tmp_path / "alone", 0)])[9] == "not shown"
    baseline = [read(made(tmp_path / "base", 0, g_lr=3.0))]
    assert answers([made(tmp_path / "ours", 0)], baseline=baseline)[8] == report.AUTHOR  # who knows whether it is random


# ---- formats ---------------------------------------------------------------------------------------


def test_formats_tell_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = list(map(str, two_arms(tmp_path, (1.0, 2.0, 3.0), (4.0, 5.0, 9.0))))
    out = {}
    for name in report.FORMATS:
        assert main([*paths, "--format", name]) == 0
        out[name] = capsys.readouterr().out
    (row,) = [r for r in json.loads(out["json"])["scores"] if (r["group"], r["score"]) == ("nas", "fid")]
    assert row["values"] == [1, 2, 3]
    assert "| nas, 1 | 2.00 | 1.50 |" in out["markdown"]
    assert "| **nas (random)** | 6.00 ± 2.65 | 1.50 ± 0.00 |" in out["markdown"]
    assert "| **improvement over nas (random)** | +67 % | +0 % |" in out["markdown"]
    (line,) = [line for line in out["markdown"].splitlines() if line.startswith("| nas | 3 | 2.00 ± 1.00 | 1.50 ± 0.00 |")]
    assert "+67 %" in line
    assert line.endswith("| 1,000 | 5,000 | 0.0111 |")  # 40 seconds
    assert r"\textbf{nas (random)} & 6.00 $\pm$ 2.65 & 1.50 $\pm$ 0.00 \\" in out["latex"]
    table = list(csv.DictReader(io.StringIO(out["csv"])))
    values = [float(r["value"]) for r in table if (r["runs"], r["name"], r["statistic"]) == ("nas", "fid", "value")]
    assert values == [1, 2, 3]
    ends = [r for r in table if r["statistic"].startswith("interval of the difference") and r["name"] == "fid"]
    assert [float(r["value"]) for r in ends] == row["against"]["interval"]
    assert [report.digits_for(x) for x in ([12.3], [1.0, None], [0.5], [0.0123], [], [0.0])] == [2, 2, 3, 4, 2, 2]


def test_text_of_runs_cannot_break_a_table(tmp_path: Path) -> None:
    path = made(tmp_path, 0, config={"dataset": "a|b_\n% $x$", "data_digest": "d"})
    found = of([path])
    table = report.tables(found)[0]
    assert len(report.markdown_lines(table)) == 3
    assert r"a\textbar{}b\_ \% \$x\$" in report.latex(found)
    assert report.tex("--phase") == "-{}-phase"  # no dash
    assert r"a\|b" in report.markdown(found)


def test_lines_that_are_cut_off_are_left_out_and_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = made(tmp_path, 0)
    with open(path / "metrics.jsonl", "a") as f:
        f.write('[1]\n{"step": 9, "eval/f')
    assert [row["step"] for row in read(path).rows] == [0, 4, 8]
    (path / "result.json").write_text("{")
    assert main([str(path)]) == 2
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# ---- curves and pictures ---------------------------------------------------------------------------


def test_a_band_ends_where_a_seed_has_no_finite_score_and_kinds_are_apart(tmp_path: Path) -> None:
    paths = [made(tmp_path, seed, fid) for seed, fid in enumerate((2.0, 4.0))]
    last = {f"eval/{k}": v for k, v in KIND._asdict().items() if k != "weights"}
    last |= {"step": 12, "t": 120.0, "phase": "eval", "eval/fid": 1.0}
    for path, rows in (
        (paths[0], [last, {**last, "eval/n": 5}, {**last, "phase": "search"}]),
        (paths[1], [{**last, "eval/fid": None}]),
    ):
        with open(path / "metrics.jsonl", "a") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    found = report.curves(grouped([read(p) for p in paths]))
    assert [(phase, kind.n) for phase, kind, _ in found] == [("eval", 100), ("eval", 5), ("search", 100)]
    (curve,) = found["eval", KIND._replace(weights=""), "fid"]
    sd = pytest.approx(2**0.5)
    assert curve.band == [(0, 0.5, 11, sd), (4, 40.5, 7, sd), (8, 80.5, 3, sd)]
    assert [seed[-1][2] for seed in curve.seeds] == [1.0, None]


@pytest.mark.parametrize(
    ("genotype", "links"),
    [
        ({"nodes": {"N1": [["U0", "conv"]], "U1": [["N1", "up"]]}}, [("U0", "N1", "conv"), ("N1", "U1", "up")]),
        (
            {"cells": [dict(conv="pre", norm="bn", up="deconv"), dict(conv="post", norm="in", up="near", skips=[1])]},
            [("z", "cell 1", "pre bn deconv"), ("cell 1", "cell 2", "post in near"), ("cell 1", "cell 2", "skip")],
        ),
        ({"G": [list("abcdefg")], "D": [list("abcdefg")]}, [*zip("0012123", "1233444", "abcdefg", strict=True)]),
        ({"G": [["a", "b"]], "D": None}, []),
    ],
)
def test_cells_of_every_form_of_genotype(genotype: dict, links: list, tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    write(path / "genotype.json", genotype)
    assert [sorted(found) for _, found in report.cells(read(path))] == ([sorted(links)] if links else [])


def test_cells_of_a_discriminator_take_their_edges_from_the_search(tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    write(path / "genotype.json", {"D": [["a<b", "c"], ["d", "none"]]})
    names = {"D": {"1/0->1": {}, "1/1->2": {}, "2/0->1": {}, "2/0->2": {}}}
    (path / "search.jsonl").write_text(json.dumps({"step": 1, "probabilities": names}) + "\n")
    found = report.cells(read(path))
    assert found == [("D, cell 1", [("0", "1", "a<b"), ("1", "2", "c")]), ("D, cell 2", [("0", "1", "d"), ("0", "2", "none")])]
    tree = ElementTree.fromstring(report.cells_svg(found))
    texts = [x.text for x in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a<b", "c", "d", "none", "D, cell 2"} <= set(texts)
    assert sum(x.tag.endswith("circle") for x in tree.iter()) == 6


def test_a_strip_has_a_column_for_each_step_and_the_same_latents_in_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for step in range(30):
        grid = Image.new("RGB", (2 + 8 * 18, 2 + 8 * 18))
        for row in range(4):
            grid.paste((step, 50 * row, 0), (2, 2 + 18 * row, 18, 18 + 18 * row))
        grid.save(folder / f"{step:06d}.png")
    files = report.sample_files(report.Run(tmp_path, {}))
    made_strip = report.strip(files)
    assert made_strip.size == (12 * 66 + 2, 4 * 66 + 16)
    assert [made_strip.getpixel((30 + 66 * i, 40 + 66 * row)) for i, row in ((0, 0), (0, 3), (11, 2))] == [
        (0, 0, 0), (0, 150, 0), (29, 100, 0)
    ]  # fmt: skip
    Image.new("RGB", (5, 5)).save(folder / "000030.png")
    with pytest.raises(UserError, match=r"000030\.png"):
        report.strip(report.sample_files(report.Run(tmp_path, {})))


def test_pictures_without_matplotlib_are_cells_and_samples_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "runs", 0)
    write(path / "genotype.json", {"nodes": {"N1": [["U0", "conv"]]}})
    (path / "samples").mkdir()
    Image.new("RGB", (146, 146)).save(path / "samples" / "000008.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(path), "--pictures", str(tmp_path / "pictures")]) == 2
    out = capsys.readouterr()
    assert "nas, 0" in out.out
    assert out.err.count("\n") == 1
    assert sorted(p.name for p in (tmp_path / "pictures").glob("*")) == [f"cells-{path.name}.svg", f"samples-{path.name}.png"]


def test_curves_are_drawn_for_each_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [*two_arms(tmp_path, (1.0, None), (2.0, 3.0)), made(tmp_path, 2, row={"eval/bn": "batch"})]
    drawn = report.pictures(grouped([read(p) for p in paths]), tmp_path / "pictures")
    names = [f"eval-fid-compact-100{more}.{suffix}" for more in ("", "-2") for suffix in ("svg", "pdf")]
    assert [p.name for p in drawn] == names
    assert all(p.stat().st_size > 1000 for p in drawn)


@pytest.mark.usefixtures("quick_compact")
def test_a_real_run_is_read(undisturbed: Callable[..., Path]) -> None:
    run = read(undisturbed("degas"))
    kind = next(iter(scores(run)))
    assert (kind.weights, kind.net, kind.n, kind.ema, kind.bn) == ("last", "compact", 30, False, "batch")
    assert scores(run)[kind]["fid"] == run.result["last"]["fid"]
    spent = report.seconds(run)
    assert all(spent[part] is not None for part in ("search", "validation", "training", "sum"))
    assert spent["sum"] == pytest.approx(sum(run.result["seconds"].values()))
    assert report.size(run, "params") == run.genotype["params"]["G"]
