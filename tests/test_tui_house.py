"""The order of tui.py and ui/: who may know whom, and how long things may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.app import App

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "tui.py", *sorted((ROOT / "ui").glob("*.py"))]
# What draws nothing: computes, reads and remembers.
NO_SCREENS = ("files", "runs", "search", "view", "draw", "curves", "genotypes", "eagan", "probabilities", "autogan")
NO_SCREENS += ("compare", "pages", "report", "columns", "foreign", "acts")


def imported(tree: ast.AST) -> set[str]:
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom):
            names |= {n.module or "", *(f"{n.module}.{a.name}" for a in n.names)}
    return names


def branches(tree: ast.AST) -> int:
    """Statements and expressions that choose or repeat."""
    return sum(isinstance(n, ast.If | ast.IfExp | ast.For | ast.While | ast.ExceptHandler) for n in ast.walk(tree))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 900
    for function in functions(ast.parse(text)):
        assert function.end_lineno - function.lineno < 60, function.name
        assert branches(function) <= 25, function.name


def test_all_of_it_has_a_limit() -> None:
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= 6800


@pytest.mark.parametrize("path", FILES[1:], ids=lambda p: p.name)
def test_who_knows_whom(path: Path) -> None:
    """No module of ui/ knows tui.py: of the app it uses what every textual app has. Only screens know textual."""
    tree = ast.parse(path.read_text())
    found = imported(tree)
    assert not any(name == "tui" or name.startswith("tui.") for name in found)
    if path.stem in NO_SCREENS:
        assert not any(name.startswith(("textual", "ui.base", "ui.screens", "ui.widgets")) for name in found)
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Attribute) and n.value.attr == "app":
            assert hasattr(App, n.attr), n.lineno


def test_draw_is_pure() -> None:
    tree = ast.parse((ROOT / "ui" / "draw.py").read_text())
    assert not imported(tree) & {"os", "io", "time", "pathlib", "ui.runs"}
    assert not any(isinstance(n, ast.Global | ast.Nonlocal) for n in ast.walk(tree))
    assert not any(isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("open", "print") for n in ast.walk(tree))
