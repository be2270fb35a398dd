"""Textual widgets using the line API: a text document, the run table, the log viewer; and the colours."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.css.query import NoMatches
from textual.geometry import Region
from textual.message import Message
from textual.message_pump import MessagePump
from textual.strip import Strip
from textual.widget import Widget

from ui.draw import Line, crop, fit
from ui.files import Log, clean

TOL_LIGHT = ["#77aadd", "#ee8866", "#44bb99", "#eedd88", "#ffaabb", "#99ddff", "#bbcc33", "#dddddd"]  # for dark backgrounds
OKABE_ITO = ["#0072b2", "#b36b00", "#00795a", "#8a7d00", "#a8447f", "#2f7fb5", "#5b3fa0", "#666666"]  # for light ones, darkened
DARK = {
    **{f"s{i}": color for i, color in enumerate(TOL_LIGHT)},
    **{"dim": "#8a8f98", "faint": "#4a505a", "key": "#56b4e9", "info": "#8ab4f8", "good": "#4cc38a", "warn": "#e6a700"},
    **{"bad": "#ff8f8f", "bold": "bold"},
    **{"page": "#d7dae0 on #12161c", "bar": "#d7dae0 on #1c232d", "sel": "#ffffff on #24405e"},
}
LIGHT = DARK | {
    **{f"s{i}": color for i, color in enumerate(OKABE_ITO)},
    **{"dim": "#5c6370", "faint": "#b4bac4", "key": "#005f9e", "info": "#0050a8", "good": "#006847", "warn": "#7a5000"},
    **{"bad": "#a8201a", "page": "#1b1f24 on #fbfcfd", "bar": "#1b1f24 on #e8ecf1", "sel": "#000000 on #d6e7f9"},
}
ANSI = {
    **{f"s{i}": c for i, c in enumerate(["cyan", "yellow", "green", "magenta", "blue", "red", "bright_cyan", "bright_yellow"])},
    **{"dim": "dim", "faint": "dim", "key": "cyan", "info": "blue", "good": "green", "warn": "yellow", "bad": "red"},
    **{"page": "", "sel": "reverse", "bar": "", "bold": "bold"},
}
PALETTES = {
    "dark": DARK,
    "light": LIGHT,
    "colour-blind": DARK | {"good": "#56b4e9", "warn": "#f0e442", "bad": "#e69f00"},  # blue, yellow, orange
    "ansi": ANSI,
}
THEMES = {"dark": "textual-dark", "light": "textual-light", "colour-blind": "textual-dark", "ansi": "ansi-dark"}
_palette = {"now": "dark"}


def use_palette(name: str) -> None:
    _palette["now"] = name
    style_of.cache_clear()


@lru_cache(2048)
def style_of(words: str) -> Style:
    palette = PALETTES[_palette["now"]]
    made = Style()
    for word in words.split():
        made += Style.parse(palette.get(word, word))
    return made


def to_strip(line: Line, width: int, base: str = "") -> Strip:
    """The line as exactly `width` cells. Control characters are replaced, so no text can send terminal commands."""
    under = style_of("page") + style_of(base)  # both colours, whatever the terminal's are
    line = [(text if text.isprintable() else clean(text, 4096), style) for text, style in line]
    styled = [(text, style_of(style) if isinstance(style, str) else style) for text, style in crop(line, width)]
    return Strip([Segment(text, under + style) for text, style in styled], width)


@dataclass
class Problem(Message):
    """An error while something was drawn or done, to be told by the app."""

    what: str
    error: Exception


def safely(on: MessagePump, what: str, do: Callable[[], Any]) -> None:
    """Call do(). An error in one widget is reported and does not crash the UI."""
    try:
        do()
    except NoMatches:
        pass  # the screen is being opened or closed; it is drawn once it is mounted
    except Exception as e:
        on.post_message(Problem(what, e))


class Lines(Widget, can_focus=False):
    """Base of the widgets: lines of text, of which only those that changed are sent to the terminal."""

    overlap, wheel, base = 2, 1, ""  # rows that stay when a page is turned, rows of a mouse wheel's step, style

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.strips: list[Strip] = []
        self.top = 0

    def draw(self) -> None:
        """Lay out what is visible and `put` it."""

    def move(self, key: str) -> None:
        """Scroll or move the cursor; key: as in `distance`."""

    def put(self, strips: list[Strip]) -> None:
        old, self.strips = self.strips, strips
        if len(old) != len(strips):
            self.refresh()
        elif changed := [Region(0, y, self.size.width, 1) for y, (a, b) in enumerate(zip(old, strips, strict=True)) if a != b]:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        if y < len(self.strips) and self.strips[y].cell_length == self.size.width:
            return self.strips[y]
        return to_strip([], self.size.width, self.base)

    def on_resize(self, _: events.Resize) -> None:
        safely(self, self.id or "", self.restyle)

    def restyle(self) -> None:
        """Draw everything anew: the size or the palette has changed."""
        self.strips = []
        self.draw()
        self.refresh()

    def distance(self, key: str) -> int:
        """Rows from here for up, down, pageup, pagedown, home or end."""
        page = max(1, self.size.height - self.overlap)
        return {"up": -1, "down": 1, "pageup": -page, "pagedown": page, "home": -(10**9), "end": 10**9}[key]

    def on_mouse_scroll_down(self, _: events.MouseScrollDown) -> None:
        for _i in range(self.wheel):
            self.move("down")

    def on_mouse_scroll_up(self, _: events.MouseScrollUp) -> None:
        for _i in range(self.wheel):
            self.move("up")

    @property
    def text(self) -> str:
        """The visible text, for tests and copying."""
        return "\n".join(strip.text.rstrip() for strip in self.strips)


class Doc(Lines):
    """Scrollable lines from make(width, height). The last row says how many lines are below."""

    def __init__(self, make: Callable[[int, int], list[Line]] | None = None, base: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.make, self.base = make, base
        self.lines: list[Line] = []

    def rebuild(self) -> None:
        if self.make and self.size.width and self.size.height:
            self.show(self.make(self.size.width, self.size.height))

    def show(self, lines: list[Line]) -> None:
        self.lines = lines
        self.draw()

    def draw(self) -> None:
        w, h = self.size
        if not w or not h:
            return
        self.top = max(0, min(self.top, len(self.lines) - h))
        strips = [to_strip(line, w, self.base) for line in self.lines[self.top : self.top + h]]
        if (below := len(self.lines) - self.top - h) > 0:
            strips[-1] = to_strip([(fit(f" ↓ {below + 1} more lines", w), "dim")], w, self.base)
        self.put(strips)

    def on_resize(self, event: events.Resize) -> None:
        if self.make:
            safely(self, self.id or "", self.rebuild)
        super().on_resize(event)

    def move(self, key: str) -> None:
        self.top += self.distance(key)
        self.draw()


class Table(Lines):
    """Rows under a header. rows: (key, [(text, style), ...]), with the cells already padded to the column widths."""

    overlap = 3

    @dataclass
    class Picked(Message):
        """The cursor moved; entered: the selected row was clicked again."""

        entered: bool = False

    @dataclass
    class Sorted(Message):
        """The header was clicked at column x."""

        x: int

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.head: Line = []
        self.rows: list[tuple[str, Line]] = []
        self.cursor = 0
        self.empty: list[Line] = []
        self.made: list[tuple[tuple, Strip]] = []  # (line, style, width) and strip of each row on the screen

    @property
    def key(self) -> str | None:
        return self.rows[self.cursor][0] if self.rows else None

    def show(self, head: Line, rows: list[tuple[str, Line]], became: dict[str, str] | None = None) -> None:
        """Replace the contents. The cursor stays on its key, or on the key's new name in `became`."""
        key = (became or {}).get(self.key, self.key)
        self.rows, self.head = rows, head
        if key is not None and (self.cursor >= len(rows) or rows[self.cursor][0] != key):
            self.cursor = next((i for i, (k, _) in enumerate(rows) if k == key), self.cursor)
        self.cursor = max(0, min(self.cursor, len(self.rows) - 1))  # also while the table is hidden, and not drawn
        self.draw()

    def draw(self) -> None:
        w, h = self.size
        if not w or not h:
            return
        room = h - 1
        self.top = max(0, min(self.top, len(self.rows) - room))
        self.top = min(self.top, self.cursor) if self.cursor < self.top else max(self.top, self.cursor - room + 1)
        shown = [(self.head, "bar")] + [(line, "") for _, line in self.rows[self.top : self.top + room]]
        shown += [(line, "") for line in self.empty[:room]] if not self.rows else []
        shown += [([], "")] * (h - len(shown))
        if self.rows and room:
            shown[self.cursor - self.top + 1] = (self.rows[self.cursor][1], "sel")
        made = []
        for (line, base), known in zip_longest(shown, self.made[:h]):
            mark = (tuple(line), base, w)
            made.append(known if known and known[0] == mark else (mark, to_strip(line, w, base)))
        self.made = made
        self.put([strip for _, strip in self.made])

    def restyle(self) -> None:
        self.made = []
        super().restyle()

    def move(self, key: str) -> None:
        self.go(self.cursor + self.distance(key))

    def go(self, row: int) -> None:
        before = self.cursor
        self.cursor = max(0, min(row, len(self.rows) - 1))
        self.draw()
        if self.cursor != before:
            self.post_message(self.Picked())

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            self.post_message(self.Sorted(event.x))
            return
        row = self.top + event.y - 1
        if row == self.cursor and self.rows:
            self.post_message(self.Picked(entered=True))
        elif row < len(self.rows):
            self.go(row)


BAD_LINE = r"(?i)error|traceback|exception|failed|\bnan\b|diverged|out of memory"  # of a log


class LogView(Lines):
    """Log viewer for files of any size. Follows the end until the user scrolls up; after that, only the user moves it."""

    overlap, wheel = 1, 3

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.log_file: Log | None = None
        self.follow, self.left = True, 0
        self.digits = 0  # width of the line numbers; does not grow while the view is paused
        self.pattern = self.filter = ""
        self.shown: Sequence[int] | None = None  # numbers of the matching lines if a filter is on
        self.searched = 0  # number of lines already filtered
        self.seen = 0  # number of lines when the view last followed
        self.hit = -1

    def open(self, log: Log) -> None:
        self.log_file, self.follow, self.top, self.left, self.shown, self.filter = log, True, 0, 0, None, ""
        self.pattern, self.hit, self.searched, self.seen = "", -1, 0, 0

    def __len__(self) -> int:
        return len(self.shown) if self.shown is not None else len(self.log_file) if self.log_file else 0

    def number(self, row: int) -> int:
        return self.shown[row] if self.shown is not None else row

    def tick(self) -> None:
        """Check for new lines and redraw."""
        log = self.log_file
        if log is None:
            return
        anew = log.update()
        if anew and self.filter and self.shown is not None:
            if self.searched > len(log):
                self.shown, self.searched = [], 0
            first = max(0, self.searched - 1)  # the last line may have been incomplete
            self.shown = [i for i in self.shown if i < first] + log.matching(self.filter, first)
            self.searched = len(log)
        self.draw()

    def matching(self, pattern: str) -> list[int]:
        """Numbers of the lines that match, of those that are shown. ValueError: an invalid pattern."""
        hits, shown = self.log_file.matching(pattern) if self.log_file else [], set(self.shown or ())
        return hits if self.shown is None else [h for h in hits if h in shown]

    def set_filter(self, pattern: str) -> None:
        """Show only the lines that match; "": show all. ValueError: an invalid pattern."""
        at = self.number(self.top) if len(self) else 0
        lines = self.log_file.matching(pattern) if pattern and self.log_file else None
        self.filter, self.shown, self.top = pattern, lines, at
        self.searched = len(self.log_file) if self.log_file else 0
        if lines is not None:
            self.top = next((k for k, i in enumerate(lines) if i >= at), max(0, len(lines) - 1))
        self.draw()

    def draw(self) -> None:
        w, h = self.size
        if not w or not h or self.log_file is None:
            return
        last = max(0, len(self) - h)
        if self.follow:
            self.top, self.seen = last, len(self)
        self.top = max(0, min(self.top, max(0, len(self) - 1)))
        rows = range(self.top, min(len(self), self.top + h))
        numbers = [self.number(r) for r in rows]
        if self.follow:
            self.digits = 0
        self.digits = digits = max(self.digits, len(str(max(numbers, default=0) + 1)))
        strips = []
        for number, text in zip(numbers, self.log_file.lines(numbers), strict=True):
            style = "bad" if re.search(BAD_LINE, text) else "warn" if "warn" in text.lower() else ""
            if number == self.hit:
                style += " reverse"
            body = text[self.left :] if self.left else text
            body = fit(body, w - digits - 1) if cell_len(body) > w - digits - 1 else body  # with an ellipsis
            strips.append(to_strip([(f"{number + 1:>{digits}} ", "dim"), (body, style)], w))
        if not strips:
            strips = [to_strip([(" the log is empty" if not self.filter else f" no lines match {self.filter}", "dim")], w)]
        self.put(strips)

    def move(self, key: str) -> None:
        self.follow = key == "end" or (self.follow and key not in ("up", "pageup", "home"))
        if not self.follow:
            self.top = max(0, min(self.top + self.distance(key), len(self) - self.size.height))
        self.draw()

    def sideways(self, by: int) -> None:
        self.left = max(0, self.left + by)
        self.draw()

    def show_line(self, number: int) -> None:
        """Scroll to a line and highlight it. The view stops following."""
        self.follow, self.hit = False, number
        row = number if self.shown is None else next((k for k, i in enumerate(self.shown) if i >= number), 0)
        if not self.top <= row < self.top + self.size.height:
            self.top = max(0, row - self.size.height // 3)
        self.draw()

    @property
    def status(self) -> str:
        total = len(self.log_file) if self.log_file else 0
        mode = "FOLLOW" if self.follow else f"PAUSED +{max(0, len(self) - self.seen)} lines"
        only = f" · {len(self)} match {clean(self.filter, 30)}" if self.shown is not None else ""
        side = f" · from column {self.left + 1}" if self.left else ""
        return f"{mode} · {total} lines{only}{side}"
