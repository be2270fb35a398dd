"""Reading files that may be anything: limits on size, growing JSON lines, logs of any length, text safe to display."""

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ui import np

SLICE = 256 << 10  # bytes read from a file at a time; longer lines are skipped and counted as bad


# ---- untrusted files --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The file descriptor of a regular file. OSError: it does not exist or is a link, pipe, device or folder."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("not a regular file")
        yield fd
    finally:
        os.close(fd)


def read_bytes(path: Path, limit: int = 1 << 20) -> bytes:
    """Read a small file. OSError: as `opened`, or the file is longer than `limit` bytes."""
    with opened(path) as fd:
        data = os.pread(fd, limit + 1, 0)
    if len(data) > limit:
        raise OSError(f"larger than {limit >> 10} kB")
    return data


def read_end(path: Path, most: int) -> tuple[bytes, bool]:
    """(the last `most` bytes of a file, whether that is all of it). OSError: as `opened`."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        return os.pread(fd, most, max(0, size - most)), size <= most


def write_json(path: Path, value: object) -> None:
    """Replace a file whole. OSError: it cannot be written."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as f:
        f.write(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(tmp, path)


def parse(data: bytes) -> dict:
    """Parse a JSON object. ValueError: anything else, or nested too deeply."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of an object")
    return value


def parse_lines(lines: list[bytes]) -> tuple[list[dict], int]:
    """Parse JSON lines: (objects, number of bad lines)."""
    try:  # parsing all lines at once is about twice as fast
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(type(r) is dict for r in rows):
            return rows, 0
    except (ValueError, RecursionError):
        pass
    rows = []
    for line in lines:
        try:
            rows.append(parse(line))
        except ValueError:
            continue
    return rows, len(lines) - len(rows)


def number(value: object) -> float | None:
    """The value as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def get(value: object, *keys: object) -> Any:
    """value[key][key]..., or None if a key is missing or a value has the wrong type."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def clean(value: object, longest: int = 400) -> str:
    """Make untrusted text safe to display: one line, no control or invisible characters, no lone surrogates."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    text = text[:longest]
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\t\n\r\xa0\u3000" else "·" for c in text if c not in "\ufe0f\u200d")


class Tail:
    """Reads new complete lines of a growing file. A truncated or replaced file is reread from the start."""

    def __init__(self, path: Path, longest: int = SLICE) -> None:
        self.path, self.longest = path, longest
        self.bad = 0  # number of lines skipped because they were too long
        self.more = False  # whether another read would return more right away
        self._reset(None)

    def _reset(self, key: tuple | None) -> None:
        self.key, self.offset, self.mark, self.size, self.skipping = key, 0, b"", 0, False
        self.mtime = 0.0

    def read(self) -> tuple[bool, list[tuple[int, bytes]]]:
        """(whether the file is reread from the start, [(offset, line)]). Reads at most `longest` bytes."""
        try:
            st = os.lstat(self.path)
        except OSError:
            anew = self.offset > 0
            self._reset(None)
            return anew, []
        anew = False
        if (st.st_dev, st.st_ino) != self.key or st.st_size < self.offset:
            anew = self.offset > 0
            self._reset((st.st_dev, st.st_ino))
        same = st.st_size == self.size and st.st_mtime == self.mtime and not self.more
        self.size, self.mtime = st.st_size, st.st_mtime
        if st.st_size == self.offset or same:
            return anew, []
        try:
            with opened(self.path) as fd:
                if self.mark and os.pread(fd, len(self.mark), self.offset - len(self.mark)) != self.mark:
                    anew = True  # truncated and appended to, as a resumed run does
                    self._reset(self.key)
                    self.size, self.mtime = st.st_size, st.st_mtime
                data = os.pread(fd, self.longest, self.offset)
        except OSError:
            return anew, []
        start, end = self.offset, data.rfind(b"\n") + 1
        self.more = end > 0 and start + end < self.size
        if not end:
            if len(data) < self.longest:
                return anew, []  # incomplete line
            self.bad += not self.skipping
            self.skipping, self.offset, self.mark, self.more = True, start + len(data), data[-64:], True
            return anew, []
        self.offset, self.mark = start + end, data[max(0, end - 64) : end]
        lines, at = [], start
        for line in data[: end - 1].split(b"\n"):
            if self.skipping:
                self.skipping = False  # the rest of a line that was too long
            elif line.strip():
                lines.append((at, line))
            at += len(line) + 1
        return anew, lines


def mtime(path: Path) -> float:
    return (stamp(path) or (0, 0, 0))[2] / 1e9


def stamp(path: Path) -> tuple:
    """(inode, size, mtime in ns), by which one sees that a file has changed; () if there is none."""
    try:
        st = os.lstat(path)
    except OSError:
        return ()
    return st.st_ino, st.st_size, st.st_mtime_ns


def last_line(path: Path) -> str:
    """The last non-empty line of a file."""
    try:
        data, _ = read_end(path, 4096)
    except OSError:
        return ""
    lines = [x for x in plain_bytes(data).splitlines() if x.strip()]
    return clean(lines[-1].strip()) if lines else ""


# ---- logs -------------------------------------------------------------------------------------------------------------

ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
ONE_LINE = re.compile(r"\\[sSDWnrAZ]|\[\^|\(\?(?!i\))|\\x|\\0")  # patterns that could match across lines in a bulk search


def plain_bytes(data: bytes) -> str:
    return ESCAPES.sub(b"", data).decode("utf-8", "replace")


class Log:
    """Line access to a growing text file of any size. Only line offsets are kept; text is read when shown."""

    CAP = 4096  # bytes shown per line

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.key: tuple | None = None
        self.end = 0
        self.starts = np.zeros(1, np.int64)  # line offsets; the last line may be incomplete
        self.count = 1

    def __len__(self) -> int:
        """Number of lines, including an incomplete last one."""
        return self.count - (int(self.starts[self.count - 1]) == self.end)

    def update(self, limit: int = 64 << 20) -> bool:
        """Index new lines, at most `limit` bytes. Returns whether lines were added or the file was replaced."""
        try:
            with opened(self.path) as fd:
                return self._update(fd, limit)
        except OSError:
            gone = self.end > 0
            self._reset()
            return gone

    def _update(self, fd: int, limit: int) -> bool:
        st = os.fstat(fd)
        anew = self.key is not None and ((st.st_dev, st.st_ino) != self.key or st.st_size < self.end)
        if anew:
            self._reset()
        self.key, before = (st.st_dev, st.st_ino), self.end
        while self.end < st.st_size and self.end - before < limit and (data := os.pread(fd, 1 << 20, self.end)):
            found = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + (self.end + 1)
            while self.count + len(found) > len(self.starts):
                self.starts = np.concatenate([self.starts, np.zeros(len(self.starts) + 1024, np.int64)])
            self.starts[self.count : self.count + len(found)] = found
            self.count += len(found)
            self.end += len(data)
        return anew or self.end > before

    def lines(self, wanted: Iterable[int]) -> list[str]:
        """Text of lines (counted from 0): no escape codes, only the last state of progress bars, at most CAP bytes each."""
        try:
            with opened(self.path) as fd:
                return [self._line(fd, i) for i in wanted]
        except OSError:
            return ["" for _ in wanted]

    def _line(self, fd: int, i: int) -> str:
        start = int(self.starts[i])
        end = int(self.starts[i + 1]) - 1 if i + 1 < self.count else self.end
        data = os.pread(fd, min(end - start, self.CAP), start)
        long = end - start > self.CAP
        if long:
            tail = os.pread(fd, self.CAP, end - self.CAP)
            if b"\r" in tail:
                data, long = tail, False
        text = plain_bytes(data.rstrip(b"\r").rpartition(b"\r")[2]).expandtabs(4)
        return clean(text, self.CAP) + (f" … {(end - start) / 1e6:.1f} MB" if long else "")

    def matching(self, pattern: str, first: int = 0) -> list[int]:
        """Numbers of the lines from `first` on that match a regular expression, as with grep. ValueError: invalid pattern."""
        try:
            regex = re.compile(pattern.encode(), re.M)
        except (re.error, OverflowError) as e:
            raise ValueError(f"{pattern}: {e}") from None
        bulk, n = not ONE_LINE.search(pattern), len(self)
        hits: list[int] = []
        with contextlib.suppress(OSError), opened(self.path) as fd:
            while first < n:
                limit = int(self.starts[first]) + (1 << 20)
                last = min(n, max(first + 1, int(np.searchsorted(self.starts[: self.count], limit))))
                start, end = int(self.starts[first]), int(self.starts[last]) if last < self.count else self.end
                data = os.pread(fd, min(end - start, 16 << 20), start)
                if bulk:
                    found = [start + m.start() for m in regex.finditer(data)]
                    at = np.searchsorted(self.starts[: self.count], found, "right") - 1
                    hits += [i for i in np.unique(at).tolist() if i < last]
                else:
                    hits += [first + k for k, line in enumerate(data.split(b"\n")[: last - first]) if regex.search(line)]
                first = last
        return hits
