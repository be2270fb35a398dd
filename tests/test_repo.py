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

ROOT = Path(__file__).parents[1]
METHODS = [f for f in sorted(ROOT.glob("*.py")) if "PRESETS" in f.read_text()]
DIVERGES = {  # names that mean the same in each script and are another thing in each
    "Args": "each method has its own arguments",
    "State": "what a resumed run needs",
    "main": "what the method checks and resolves first",
    "check": "which values of its own arguments cannot go together",
    "check_size": "how often its networks double or halve a side",
    "d_loss": "the hinge loss, or DEGAS's of CT-GAN",
    "Generator": "the network that the method searches",
    "UpCell": "one op an edge, or all of them mixed",
    "DownCell": "one op an edge, or all of them mixed",
    "Discriminator": "one op an edge, or all of them mixed",
    "make_d": "which discriminators it has",
    "d_step": "what a network takes beside its input: paths, or an architecture and a stage",
    "g_step": "what a network takes beside its input: paths, or an architecture and a stage",
    "gan_step": "what a network takes beside its input: paths, or an architecture and a stage",
    "search": "the method",
    "derive": "how its search ends in one genotype",
    "train": "the schedule of its paper",
    "genotype_json": "what its genotypes are",
    "first_state": "what a resumed run needs",
    "stages_of": "which stages it has, in which order",
    "plan_of": "how long its stages take",
    "cost_of": "which networks it has",
    "costs_of": "which networks it has",
}


def names(file: Path) -> dict[str, str]:
    """Top-level functions and classes, each as the text of its syntax tree without its docstring."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node):
                node.body = node.body[1:]
            found[node.name] = ast.dump(node)
    return found


def test_a_name_of_two_scripts_has_the_same_code() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for file in METHODS:
        for name, code in names(file).items():
            other, same = seen.setdefault(name, (file.name, code))
            assert name in DIVERGES or code == same, f"{name} differs in {other} and {file.name}"


def header_of(text: str) -> str:
    """The PEP 723 block at the top of a script."""
    return re.match(r"# /// script\n(?:#.*\n)*?# ///\n", text)[0]


LINES = {"eagan": 1010, "adversarialnas": 1010, "autogan": 1050, "degas": 1150}  # what is read in one sitting
SEARCH = {"eagan": ["search_g", "search_d"]}  # the functions that show the paper's algorithm


@pytest.mark.parametrize("name", LINES)
def test_a_script_is_read_in_one_sitting(name: str) -> None:
    text = (ROOT / f"{name}.py").read_text()
    text = text.removeprefix(header_of(text))  # dependencies are for uv to read
    lines, tree = text.splitlines(), ast.parse(text)
    assert len(lines) <= LINES[name]
    assert sum(len(line) > 100 for line in lines) <= len(lines) / 10
    assert len(names(ROOT / f"{name}.py")) <= 45
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            args = node.args
            parameters = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg not in ("self", "cls")]
            assert len(parameters) + bool(args.vararg) <= 6, node.name
            if node.name in SEARCH.get(name, ["search"]):
                assert node.end_lineno - node.lineno < 60, node.name


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


def test_the_parsers_library_is_never_imported() -> None:
    assert not [
        f for f in ROOT.glob("**/*.py") if ".venv" not in f.parts and re.search(r"^(import|from) click", f.read_text(), re.M)
    ]


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_every_deviation_has_its_row(file: Path) -> None:
    in_code = sorted(int(n) for n in re.findall(r"DEVIATES (\d+):", file.read_text()))
    section = (ROOT / "docs" / f"{file.stem}.md").read_text().split("## Deviations and open questions")[1]
    in_docs = [int(n) for n in re.findall(r"^\| (\d+) \|", section, re.M)]
    assert in_code == in_docs == list(range(1, len(in_code) + 1))


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_the_method_page_has_the_seven_headings_and_every_logged_key(file: Path) -> None:
    text = (ROOT / "docs" / f"{file.stem}.md").read_text()
    assert re.findall(r"^## (.*)", text, re.M) == [
        *("Paper in brief", "Search space", "Usage", "Logged metrics", "Implementation details", "Results"),
        "Deviations and open questions",
    ]
    sources = file.read_text() + (ROOT / "common/run.py").read_text() + (ROOT / "common/metrics.py").read_text()
    for key in set(re.findall(r'"((?:loss|eval|noise|perf)/\w+)"', sources)):
        assert f"`{key}`" in text, key


def commands() -> list[tuple[str, list[str]]]:
    """Every `python METHOD.py …` in the documents, without the runs and files that only a user has."""
    found = []
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
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


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_presets_and_help_are_whole(file: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_file_of_the_project_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = tracked.stdout.split() or [str(f.relative_to(ROOT)) for f in ROOT.glob("**/*.py") if ".venv" not in f.parts]
    for name in files:
        if name.endswith(".png") or name == "tests/test_repo.py":
            continue
        assert not re.search(r"/work/|/root/|/home/\w", (ROOT / name).read_text()), name


@pytest.mark.slow
@pytest.mark.parametrize("method", [f.stem for f in METHODS])
def test_the_speed_of_every_loop_can_be_measured(method: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
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
        lines = header_of(file.read_text()).splitlines()[1:-1]
        header = tomllib.loads("\n".join(line[2:] for line in lines))
        assert header == {"requires-python": ">=3.11", "dependencies": requirements}, file.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
