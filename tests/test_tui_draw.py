"""Pictures made of text against their definitions: curves, rails, probabilities, sample grids. Pure functions."""

import random
from pathlib import Path

import numpy as np
import pytest
from fake_trainer import append, grid_png, make_run
from PIL import Image
from rich.cells import cell_len
from test_tui_runs import opened

import tui
from ui import draw, genotypes, pages
from ui.draw import Series, chart
from ui.pages import open_image
from ui.search import edges, entropy
from ui.several import fitting
from ui.view import View
from ui.widgets import PALETTES, to_strip, use_palette


def texts(lines: list) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def dots(lines: list[str]) -> np.ndarray:
    """(H, W) of bool: the dots of a chart, without its axes."""
    cells = np.array([[ord(c) - 0x2800 if 0x2800 <= ord(c) < 0x2900 else 0 for c in line[8:]] for line in lines[:-1]])
    canvas = np.zeros((4 * cells.shape[0], 2 * cells.shape[1]), bool)
    for (dy, dx), bit in draw.BRAILLE.items():
        canvas[dy::4, dx::2] = (cells & bit) > 0
    return canvas


# ---- curves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("zoom", ["all", "tail", "low"])
@pytest.mark.parametrize("n", [0, 1, 2, 500])
def test_a_chart_has_exactly_its_size(n: int, zoom: str, log: bool) -> None:
    rng = np.random.default_rng(n)
    y = rng.normal(5, 5, n)
    y[n // 2 : n // 2 + 3] = np.nan
    series = [Series(np.arange(n, dtype=float), y, "s0", "a", raw=y, spread=np.abs(y)), Series(np.arange(n), y + 1, "s1", "b")]
    for width, height in ((20, 5), (55, 17), (120, 36)):
        lines = texts(chart(series, width, height, log=log, zoom=zoom, cursor=n / 2, marks=((1.0, "train"),))[0])
        assert [cell_len(line) for line in lines] == [width] * height


def test_a_curve_goes_through_the_mean_of_what_falls_into_a_column() -> None:
    x = np.arange(4000.0)
    y = np.sin(x / 600) + np.random.default_rng(0).normal(0, 0.1, 4000)
    canvas = dots(texts(chart([Series(x, y)], 58, 21)[0]))
    h, w = canvas.shape
    low, high = y.min(), y.max()  # the axis of raw values, with 3 % around
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    at = (x * ((w - 1) / x[-1])).astype(int)
    for column in range(w):
        row = (high - y[at == column].mean()) / (high - low) * (h - 1)
        assert canvas[round(row), column], column


def test_a_curve_breaks_at_nan_and_nowhere_else() -> None:
    x, y = np.arange(100.0), np.arange(100.0)
    y[40:60] = np.nan
    canvas = dots(texts(chart([Series(x, y)], 108, 30)[0]))
    filled = canvas.any(axis=0)
    columns = (np.array([39, 60]) * (canvas.shape[1] - 1) / 99).astype(int)
    assert filled[: columns[0] + 1].all()
    assert not filled[columns[0] + 1 : columns[1]].any()
    assert filled[columns[1] :].all()


def test_a_chart_counts_the_points_that_it_leaves_out() -> None:
    x, y = np.arange(10.0), np.array([100.0, 50, 9, 8, 7, 6, 5, 4, 3, 0])
    notes = [chart([Series(x, y)], 60, 12, **how)[1] for how in ({}, {"zoom": "low"}, {"log": True})]
    assert [note.split(" ")[0] for note in notes] == ["", "2", "1"]
    assert not dots(texts(chart([Series(x, -y)], 60, 12, log=True)[0])).any()


def test_the_curve_on_top_is_the_last_and_letters_mark_the_ends() -> None:
    x = np.arange(50.0)
    lines, _ = chart([Series(x, x, "s0", "a"), Series(x, x, "s1", "b"), Series(x, 49 - x, "s2", "c")], 60, 16)
    styles = {style for line in lines for text, style in line if any(0x2800 < ord(c) < 0x2900 for c in text)}
    assert styles == {"s1", "s2"}  # b hides a
    assert all(sum(letter in line[8:] for line in texts(lines)[:-1]) == 1 for letter in "abc")


@pytest.mark.parametrize("n", [2, 3, 5, 9])
@pytest.mark.parametrize("ends", [(1.7082, 1.7101), (0, 1), (3, 40_000), (-5, 5), (1e-7, 3e-7), (449, 450), (0.93, 1.58)])
def test_ticks_are_inside_and_their_labels_differ(ends: tuple[float, float], n: int) -> None:
    found = draw.ticks(*ends, n)
    assert 2 <= len(found) <= n + 2
    assert ends[0] - 1e-9 <= min(found) <= max(found) <= ends[1] + 1e-9
    assert len(set(draw.labels(found))) == len(found)


def test_a_constant_with_rounding_errors_is_flat() -> None:
    y = np.full(50, 900.0) + np.arange(50) % 2 * 1e-13
    labels = [line[:6].strip(" ┤│") for line in texts(chart([Series(np.arange(50.0), y)], 60, 12)[0])[:-1]]
    shown = [label for label in labels if label]
    assert len(shown) == len(set(shown)) > 1


def test_ticks_of_a_log_axis_are_one_two_five() -> None:
    assert draw.ticks(0.8, 120, 8, log=True) == [1, 2, 5, 10, 20, 50, 100]
    assert draw.ticks(16, 210, 3, log=True) == [20, 100]  # few, but over the whole height


def test_a_staircase_joins_the_front() -> None:
    points = [(1.0, 5.0, "◆", ""), (10.0, 8.0, "◆", ""), (5.0, 6.0, "∘", "")]
    lines = texts(draw.scatter(points, 50, 12, log_x=True, path=[(1.0, 5.0), (10.0, 8.0)]))
    assert [cell_len(line) for line in lines] == [50] * 12
    assert sum(line.count("◆") for line in lines) == 2
    assert any("─" in line for line in lines)


# ---- cells, probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "nets"), [("eagan", [21, 21]), ("adversarialnas", [21, 21]), ("autogan", [6, 0]), ("degas", [5, 0])]
)
def test_rails_have_a_row_for_every_edge(tmp_path: Path, method: str, nets: list[int]) -> None:
    run = opened(make_run(tmp_path, method, rows=20))
    for net, n in zip("GD", nets, strict=True):
        found = genotypes.cells(run, run.genotype, net)
        assert sum(len(links) for _, _, links in found) == n
        assert bool(found) == bool(n)
        for _, nodes, links in found:
            head, *lines = texts(draw.rails(nodes, [(a, b, op, "") for a, b, op in links], 110))
            assert all(op in line for (_, _, op), line in zip(links, lines, strict=True))
            assert {node for a, b, _ in links for node in (a, b)} <= set(nodes)
            assert max(map(cell_len, [head, *lines])) <= 110


def test_skips_of_autogan_are_numbers_of_earlier_cells(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, "autogan", rows=20))
    (_, _, links) = genotypes.cells(run, run.genotype, "G")[0]
    assert [link for link in links if link[2] in ("skip", "none")] == [
        *[("cell 1", "cell 2", "skip"), ("cell 1", "cell 3", "none"), ("cell 2", "cell 3", "skip")],
    ]


@pytest.mark.parametrize("method", ["adversarialnas", "degas"])
def test_the_heat_map_shows_every_probability_and_its_entropy(tmp_path: Path, method: str) -> None:
    run = opened(make_run(tmp_path, method, rows=20))
    text = texts(pages.search(run, 120, 60, View()))
    for edge, p in edges(run.search.row(-1), "G").items():
        line = next(row for row in text if f" {edge} " in row)
        *shown, h = (float(word.strip("░▒▓█")) for word in line.partition(f" {edge} ")[2].split()[: len(p) + 1])
        assert sorted(shown) == pytest.approx(sorted(p.values()), abs=0.006)
        assert h == pytest.approx(-sum(v * np.log(v) for v in p.values()), abs=0.006)
        assert h == pytest.approx(entropy(p), abs=0.006)


def test_an_edge_over_time_is_drawn_from_its_history() -> None:
    history = [{"skip": 0.1 * k, "conv": 1 - 0.1 * k} for k in range(9)]
    skip, conv = texts(draw.heat(history, 1.0))
    assert skip == "skip ▁▂▂▃▄▅▅▆▇ 0.80"
    assert conv == "conv █▇▇▆▅▅▄▃▂ 0.20"


# ---- samples, signs of trouble, words -----------------------------------------------------------------------------------


def test_half_blocks_show_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(grid_png(3))
    image = open_image(tmp_path / "grid.png")
    assert draw.grid_of(image) == (8, 34)
    assert draw.variety(image) > 0.2
    assert draw.variety(np.full_like(image, 128)) == 0
    lines = draw.half_blocks(image, 274, 137)
    assert len(lines) == 137
    for y in (0, 8, 100):
        row = [style for text, style in lines[y] for _ in text]
        assert [tuple(s.color.triplet) for s in row] == [tuple(p) for p in image[2 * y].tolist()]
        assert [tuple(s.bgcolor.triplet) for s in row] == [tuple(p) for p in image[2 * y + 1].tolist()]
    for width, height in ((79, 18), (199, 44), (40, 8)):  # the last sample is there at every size
        *_, last = draw.half_blocks(image, width, height)
        _, style = last[-1]
        wanted = np.array(image[-8, -8].tolist())
        assert np.abs(np.array(style.color.triplet) - wanted).max() < 130
        assert len(draw.half_blocks(image, width, height)) <= height
    for width, height, across in ((70, 34, 8), (40, 12, 4), (5, 3, 1)):
        small = texts(draw.half_blocks(image, width, height, across))
        assert len(small) <= height
        assert max(map(len, small)) <= width


def test_every_kind_of_trouble_is_seen_and_a_sound_run_has_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, "adversarialnas", rows=20, samples=3)
    assert pages.troubles(opened(run)) == {}
    append(run / "metrics.jsonl", *({"step": 500 + i, "loss/d": 0.001, "loss/g": None, "t": 1} for i in range(50)))
    append(run / "search.jsonl", {"step": 300, "probabilities": {"G": {"1/0->4": {"none": 0.8, "conv_3x3": 0.2}}}})
    Image.new("RGB", (274, 274), "grey").save(run / "samples" / "000900.png")
    found = pages.troubles(opened(run))
    assert set(found) == {"nan", "balance", "modes", "edges"}
    assert "50" in found["nan"]
    assert "100" in found["edges"]
    append(run / "search.jsonl", {"step": 300, "warning": "alpha has no gradient"})
    assert pages.troubles(opened(run))["search"] == "alpha has no gradient"
    append(run / "search.jsonl", {"step": 300, "signs/active": 0.5})
    assert pages.troubles(opened(run))["search"] == "alpha has no gradient"
    append(run / "search.jsonl", {"step": 320, "signs/active": 0.5})
    assert "search" not in pages.troubles(opened(run))


def test_wide_characters_are_never_split() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab漢字é🎉") for _ in range(rng.randrange(20)))
        for width in range(12):
            assert cell_len(draw.fit(text, width)) == width
            assert cell_len("".join(t for t, _ in draw.crop([(text, "")], width))) == width
        assert cell_len(draw.fit_middle(text * 3, 25)) == 25


# ---- colours ----------------------------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours, #rrggbb."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", [name for name in PALETTES if name != "ansi"])
def test_all_text_is_readable_on_every_terminal(look: str) -> None:
    """Both colours of every cell are set, so the terminal's own do not matter; text has a contrast of 4.5, dim text of 3."""
    use_palette(look)
    try:
        for base in ("", "bar", "sel"):
            for style in ("", "bold", "dim", "key", "info", "good", "warn", "bad", *(f"s{i}" for i in range(8))):
                (segment,) = to_strip([("text", style)], 4, base)
                ink, ground = (c.get_truecolor().hex for c in (segment.style.color, segment.style.bgcolor))
                dim = style == "dim" or style.startswith("s")
                assert contrast(ink, ground) >= (3 if dim else 4.5), (base, style, contrast(ink, ground))
    finally:
        use_palette("dark")


@pytest.mark.parametrize(("said", "look"), [("0;15", "light"), ("0;default;7", "light"), ("15;0", "dark"), ("", "dark")])
def test_the_theme_follows_the_terminal(monkeypatch: pytest.MonkeyPatch, said: str, look: str) -> None:
    monkeypatch.setenv("COLORFGBG", said)
    assert tui.theme_of_terminal() == look


@pytest.mark.parametrize("width", [10, 30, 60, 500])
def test_a_table_wider_than_the_screen_is_told_in_pieces(width: int) -> None:
    rows = [[f"{'x' * (3 * k + 1)}{row}" for k in range(8)] for row in range(4)]
    pieces = list(fitting(rows, width))
    assert [[cell for piece in pieces for cell in piece[row][1:]] for row in range(4)] == [row[1:] for row in rows]
    for piece in pieces:
        assert [row[0] for row in piece] == [row[0] for row in rows]
        wide = sum(max(map(len, column)) + 2 for column in zip(*piece, strict=True))
        assert wide <= width or len(piece[0]) == 2
