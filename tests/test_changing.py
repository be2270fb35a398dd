"""The recipes of docs/changing.md, applied as they stand there to a copy of a script, and run."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.runs import ROOT, command, read, rows
from ui.launch import read_script

PAGE = (ROOT / "docs" / "changing.md").read_text()
SMALL = {
    "--preset": "smoke", "--epoch-batches": 3, "--g-ch": 8, "--d-ch": 4, "--g-batch": 4, "--d-batch": 4,
    "--final-n": 20, "--train-epochs": 1, "--eval-n": 20, "--log-every": 1, "--ref-n": 64,
}  # fmt: skip
EAGAN = SMALL | {"--rounds": 1, "--population": 4, "--search-n": 20, "--bn-batches": 1}
AUTOGAN = SMALL | {"--iterations": 3, "--grow": "1,2", "--search-g-ch": 4, "--search-d-ch": 4, "--reward-n": 20}


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of that language under a heading of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.M | re.S)


def edited(source: str, diff: str) -> str:
    """The source with every hunk of a diff applied; each must fit in exactly one place."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M)[1:]:
        lines = hunk.splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        assert source.count(f"\n{old}\n") == 1, old
        source = source.replace(f"\n{old}\n", f"\n{new}\n")
    return source


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads the text of a mine.py as a module."""

    def load(source: str) -> ModuleType:
        path = tmp_path / "mine.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("mine", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run(tmp_path: Path, tiny_data: dict, quick_compact: None) -> Callable[..., Path]:
    """Runs a module's command to its end; returns the run directory."""

    def start(module: ModuleType, values: dict, *more: str) -> Path:
        values = {"--dataset": tiny_data["dataset"], **values}
        values |= {"--data-dir": tiny_data["data_dir"], "--runs-dir": tmp_path / "runs"}
        words = [str(word) for item in values.items() for word in item]
        assert command(module, [*words, *more]) == 0
        return max((tmp_path / "runs").glob("mine-*"), key=lambda path: path.stat().st_mtime_ns)

    return start


def flags_of(heading: str) -> list[str]:
    """The flags of the one command under a heading."""
    (block,) = blocks(heading, "bash")
    return block.split()[2:]


def test_every_recipe_takes_two_places_and_ten_lines() -> None:
    diffs = re.findall(r"^```diff\n(.*?)^```", PAGE, re.M | re.S)
    assert len(diffs) == 4
    for diff in diffs:
        assert len(set(re.findall(r"^@@ (.*)", diff, re.M))) <= 2
        assert len(re.findall(r"^\+", diff, re.M)) <= 10


def test_a_new_operation_is_searched_and_counted(copy: Callable, run: Callable) -> None:
    mine = copy(edited((ROOT / "eagan.py").read_text(), blocks("A new operation", "diff")[0]))
    made = run(mine, EAGAN)
    people = [x for row in rows(made, "search.jsonl") for x in row["population"]]
    assert any("sep_conv_3x3" in cell for x in people for cell in x["genotype"])
    for x in people:
        if x["id"].startswith("0."):  # of stage 1: a generator
            net = mine.Generator(mine.G_SPACE.check(x["genotype"], ""), 8, 120, 16)
            assert x["params"] == sum(p.numel() for p in net.parameters())


def test_another_loss_with_r1(copy: Callable, run: Callable) -> None:
    source = edited((ROOT / "eagan.py").read_text(), blocks("Another loss, with R1", "diff")[0])
    flags = EAGAN | {"--genotype": "eagan-g"}
    penalised = rows(run(copy(source), flags), "metrics.jsonl")
    without = rows(run(copy(source.replace("10 / 2 *", "0 *")), flags), "metrics.jsonl")
    first = [next(row["loss/d"] for row in found if "loss/d" in row) for found in (penalised, without)]
    assert first[0] > first[1]


def test_a_third_objective_selects_and_is_reported(copy: Callable, run: Callable) -> None:
    """Alone, it decides, and no IS is computed; the page's command has the paper's two beside it."""
    heading = "A third objective for EAGAN"
    mine = copy(edited((ROOT / "eagan.py").read_text(), blocks(heading, "diff")[0]))
    words, made = flags_of(heading), run(mine, EAGAN | {"--phase": "search", "--objectives": "edges"})
    assert words[2:] == ["--objectives", "is,fid,edges"]
    assert command(mine, [*words, "--preset", "smoke", "--dry-run"]) == 0
    found = rows(made, "search.jsonl")
    assert [row["stage"] for row in found] == ["1", "2"]
    for row in found:
        edges = {x["id"]: x["edges"] for x in row["population"]}
        fewest = sorted(edges.values())
        assert [edges[x] for x in row["kept"]] == fewest[:2]
        assert {edges[x] for x in (*row["front"], row["best"])} == {fewest[0]}
        for x in row["population"]:
            assert x["edges"] == sum(op != "none" for cell in x["genotype"] for op in cell)
            assert x["is"] is None
            assert x["fid"] > 0


def test_another_reward_scores_what_the_controller_draws(copy: Callable, run: Callable) -> None:
    heading = "Another reward for AutoGAN"
    mine = copy(edited((ROOT / "autogan.py").read_text(), blocks(heading, "diff")[0]))
    made = run(mine, AUTOGAN | {"--phase": "search"}, *flags_of(heading)[2:])
    scored = [x for row in rows(made, "search.jsonl") if "reward" in row for x in row["scored"]]
    assert scored
    for x in scored:
        assert x["score"] == pytest.approx(x["is"] - 0.01 * min(x["fid"], 1000))


@pytest.mark.slow
def test_images_of_64_px_with_classes(tmp_path: Path, quick_compact: None) -> None:
    import degas

    asked = blocks("Images of 64 px, with classes", "bash")[0].split()[2:]
    rng, labels = np.random.default_rng(0), np.arange(20) % 2
    np.savez(tmp_path / "two.npz", images=rng.integers(0, 256, (20, 64, 64, 3), np.uint8), labels=labels)
    asked[asked.index("--dataset") + 1] = str(tmp_path / "two.npz")
    small = {
        "--preset": "smoke", "--epoch-batches": 2, "--iters": 3, "--g-ch": 2, "--d-ch": 4, "--g-batch": 4,
        "--d-batch": 4, "--eval-n": 20, "--data-dir": tmp_path, "--runs-dir": tmp_path / "runs",
    }  # fmt: skip
    words = [str(word) for item in small.items() for word in item]
    assert command(degas, [*asked, "--random-arch", *words]) == 0
    (made,) = (tmp_path / "runs").glob("degas-*")
    args = read(made, "config.json")["args"]
    assert (args["size"], args["conditional"]) == (64, True)


def test_a_script_that_extends_args(copy: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = blocks("One more option, without a copy", "python")[0]
    mine = copy(source)
    monkeypatch.setattr(mine.eagan, "d_loss", mine.eagan.d_loss)  # main() replaces it: put it back afterwards
    mine.PRESETS = mine.eagan.PRESETS
    made = run(mine, EAGAN | {"--genotype": "eagan-g", "--margin": 0.5})
    assert read(made, "config.json")["args"]["margin"] == 0.5
    assert made.name.startswith("mine-")
    assert {"mine.py", "common"} <= {path.name for path in (made / "source").iterdir()}
    assert command(mine, ["--resume", str(made)]) == 0
    for name in ("eagan.py", "common"):
        (tmp_path / name).symlink_to(ROOT / name)
    form = read_script(tmp_path / "mine.py", source)
    assert form.options["margin"].default == 1.0
    assert "smoke" in form.presets
