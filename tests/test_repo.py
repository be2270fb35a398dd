"""Promises of the repository itself: documents that hold, names that mean one thing, imports that point one way."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from common.run import cli
from eagan import Args

ROOT = Path(__file__).parents[1]
METHODS = [f for f in sorted(ROOT.glob("*.py")) if "PRESETS" in f.read_text()]
DIVERGES = {"Args", "PRESETS", "State", "main"}  # each method's own: arguments, state and plan


def names(file: Path) -> dict[str, str]:
    """Top-level functions and classes, each as the text of its syntax tree."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {n.name: ast.dump(n) for n in ast.parse(file.read_text()).body if isinstance(n, kinds)}


def test_a_name_of_two_scripts_has_the_same_code() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for file in METHODS:
        for name, code in names(file).items():
            other, same = seen.setdefault(name, (file.name, code))
            assert name in DIVERGES or code == same, f"{name} differs in {other} and {file.name}"


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


def commands() -> list[list[str]]:
    """Every `python eagan.py …` in the documents, without the runs and files that only a user has."""
    found = []
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for line in re.findall(r"(?:python|eagan\.py.*-4) (eagan\.py [^#`\n]*)", page.read_text()):
            if "RUN" not in line and "--resume" not in line and "\\" not in line:
                found.append(shlex.split(line)[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_in_the_documents_parse(words: list[str]) -> None:
    made = []

    def main(args: Args) -> None:
        made.append(args)

    main.__module__ = "eagan"
    assert cli(main, Args, {"paper": {}, "quick": {}, "smoke": {}}, words) == 0
    assert made or "--help" in words


def test_links_resolve() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_file_of_the_project_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = tracked.stdout.split() or [str(f.relative_to(ROOT)) for f in ROOT.glob("**/*.py") if ".venv" not in f.parts]
    for name in files:
        if name.endswith((".png", ".svg")) or name == "tests/test_repo.py":
            continue
        assert not re.search(r"/work/|/root/|/home/\w", (ROOT / name).read_text()), name
