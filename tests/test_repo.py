"""Promises of the repository itself: documents that hold, names that mean one thing, imports that point one way."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

import common.data
from benchmark import steps
from common.cli import cli, options
from tests.runs import narrow

ROOT = Path(__file__).parents[1]
METHODS = [ROOT / f"{name}.py" for name in ("adversarialnas", "autogan", "degas", "eagan")]  # other scripts are a user's
EACH_METHOD = pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
DIVERGES = {  # names that mean the same in each script and are another thing in each
    *("Args", "State", "main", "check", "check_size", "d_loss", "Generator", "UpCell", "DownCell", "Discriminator"),
    *("make_d", "d_step", "g_step", "gan_step", "search", "derive", "train", "genotype_json", "first_state"),
    *("stages_of", "plan_of", "cost_of", "costs_of"),
}


def page_of(file: Path) -> str:
    return (ROOT / "docs" / f"{file.stem}.md").read_text()


def without_docstrings(file: Path) -> tuple[ast.Module, list[str]]:
    """A script's syntax tree, and its lines."""
    lines = file.read_text().splitlines()
    tree = ast.parse("\n".join(lines))
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)]
    described = {n.body.pop(0) for n in documented if ast.get_docstring(n)}
    left_out = {i for doc in described for i in range(doc.lineno, doc.end_lineno + 1)}
    return tree, [line for i, line in enumerate(lines, 1) if i not in left_out]


def test_a_name_of_two_scripts_has_the_same_code() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for file in METHODS:
        for node in without_docstrings(file)[0].body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in DIVERGES:
                other, same = seen.setdefault(node.name, (file.name, ast.dump(node)))
                assert ast.dump(node) == same, f"{node.name} differs in {other} and {file.name}"


@EACH_METHOD
def test_a_script_is_read_in_one_sitting(file: Path) -> None:
    tree, lines = without_docstrings(file)
    assert len(lines) <= (1100 if file.stem == "degas" else 1000)  # DEGAS holds two papers
    assert sum(len(line) > 100 for line in lines) <= len(lines) / 10
    assert sum(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body) <= 45
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            args = node.args
            parameters = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)} - {"self", "cls"}
            assert len(parameters) + bool(args.vararg) <= 6, node.name
            if node.name in ("search", "search_g", "search_d"):  # they show the paper's algorithm
                assert node.end_lineno - node.body[0].lineno < 60, node.name


def test_cells_need_no_command_line() -> None:
    code = "import sys, common.cells; sys.exit(any(name in sys.modules for name in ('typer', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_common_imports_no_method_and_methods_import_no_other() -> None:
    methods = {f.stem for f in METHODS}
    for file in (*METHODS, *ROOT.glob("common/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not methods & {m.split(".")[0] for m in modules if m}, file.name


@EACH_METHOD
def test_every_deviation_has_its_row(file: Path) -> None:
    in_code = sorted(int(n) for n in re.findall(r"DEVIATES (\d+):", file.read_text()))
    last_section = page_of(file).rpartition("\n## ")[2]
    in_docs = [int(n) for n in re.findall(r"^\| (\d+) \|", last_section, re.M)]
    assert in_code == in_docs == list(range(1, len(in_code) + 1))


@EACH_METHOD
def test_every_logged_key_is_in_the_methods_page(file: Path) -> None:
    sources = [file, ROOT / "common/run.py", ROOT / "common/metrics.py"]
    for key in re.findall(r'"((?:loss|eval|noise|perf)/\w+)"', "".join(f.read_text() for f in sources)):
        assert f"`{key}`" in page_of(file), key


def test_the_methods_pages_have_the_same_headings() -> None:
    assert len({tuple(re.findall(r"^## .*", page_of(file), re.M)) for file in METHODS}) == 1


def commands() -> list[tuple[str, list[str]]]:
    """Every `python METHOD.py …` in the documents, without the runs and files that only a user has."""
    found = []
    for page in PAGES:
        for method, line in re.findall(r"(?:python|--nproc-per-node \d+) (\w+)\.py( [^#`\n]*)", page.read_text()):
            if method in {f.stem for f in METHODS} and not re.search(r"RUN|--resume|\\", line):
                found.append((method, shlex.split(line)))
    return found


@pytest.mark.parametrize(("method", "words"), commands(), ids=lambda x: " ".join(x) if isinstance(x, list) else x)
def test_commands_in_the_documents_parse(method: str, words: list[str]) -> None:
    script, made = importlib.import_module(method), []

    def main(args: object) -> None:
        made.append(args)

    main.__module__ = method
    assert cli(main, script.Args, script.PRESETS, words) == 0
    assert made or "--help" in words


@EACH_METHOD
def test_presets_and_help_are_whole(file: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module(file.stem)
    for values in script.PRESETS.values():
        script.Args(**values)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli(script.main, script.Args, script.PRESETS, ["--preset", "smoke", "--help"]) == 0
    assert "[default: shapes]" in capsys.readouterr().out
    assert len(options(script.Args)) == len(fields(script.Args))
    for field, about in options(script.Args):
        assert re.search(r"\[[^\]]+\]$", about["help"]), f"{field.name}: its help does not end in a source"


def test_links_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("file", [*ROOT.glob("*.py"), *ROOT.glob("common/*.py"), *ROOT.glob("ui/*.py")], ids=lambda f: f.stem)
def test_text_is_written_as_utf_8(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            values = {a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)}
            if name == "write_text" or (name in ("open", "fdopen") and values & {"w", "a", "x"}):
                assert "utf-8" in values, f"{file.name}:{node.lineno}"


@pytest.mark.slow
@pytest.mark.parametrize("method", [f.stem for f in METHODS])
def test_the_speed_of_every_loop_can_be_measured(
    method: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(method)
    monkeypatch.setitem(script.PRESETS, "smoke", script.PRESETS["smoke"] | narrow(script))
    monkeypatch.setattr(steps, "REPEATS", 1)
    monkeypatch.setattr(common.data, "shapes", partial(common.data.shapes, 256))
    monkeypatch.setattr(sys, "argv", ["steps", method, "--preset", "smoke", "--seconds", "0.1", "--device", "cpu"])
    steps.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {method}")]
    assert len(table) == 2 * len(steps.ROWS[method])
    assert all(float(line.split("|")[4].split()[0]) > 0 for line in table)


def test_the_header_of_every_start_script_equals_the_requirements() -> None:
    requirements = (ROOT / "requirements.txt").read_text().split()
    for file in (*METHODS, ROOT / "tui.py"):  # tui.py starts the methods with its own Python
        block = re.match(r"# /// script\n((?:# .*\n)*)# ///\n", file.read_text())[1]  # PEP 723
        header = tomllib.loads(re.sub("^# ", "", block, flags=re.M))
        assert header == {"requires-python": ">=3.11", "dependencies": requirements}, file.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
