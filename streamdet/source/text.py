"""Rows of CSV and JSON-lines files, plain or compressed, in constant memory.

A row is bytes as they stand in the file, without the line ending. Nothing is parsed here beyond what it takes
to find where a row ends, so that reading costs little more than splitting at newlines. Not promised: that a
row is well-formed; that is for the codec to say, which can reject one row and go on.
"""

import csv
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from streamdet.errors import RecordingError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
BLOCK_BYTES = 1 << 18  # fits the cache of a core together with the lines made of it
# A line beyond this is no row but a binary file, or one without newlines: stop before memory fills.
LINE_MAX_BYTES = 1 << 24
# A stray quote would swallow the rest of the file into one row; beyond this it counts as text.
QUOTED_ROW_MAX_BYTES = 1 << 20
DELIMITERS = ",;\t|"

_BOM = b"\xef\xbb\xbf"
_CLOSING_QUOTE = re.compile(rb'(?:[^"]|"")*+"')

Moved = Callable[[int], None]


def _ignore(position: int) -> None:
    del position


def blocks(path: Path, moved: Moved = _ignore) -> Iterator[bytes]:
    """Decompressed content in pieces of `BLOCK_BYTES` or less, without a UTF-8 byte order mark.

    `moved` is told the position in the file as it lies on disk, in bytes, after each piece.

    Raises:
        RecordingError: the file cannot be read, is cut off or damaged, or is no UTF-8 text.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        with path.open("rb") as raw:
            first = True
            for block in _decompressed(raw, compression):
                moved(raw.tell())
                if first and b"\0" in block:
                    raise RecordingError(
                        f"{path} is not UTF-8 text (binary, UTF-16, or compressed under another name): "
                        f"expected CSV or JSON lines; convert it, or give it the suffix of its compression "
                        f"({', '.join(COMPRESSIONS)})"
                    )
                yield block.removeprefix(_BOM) if first else block
                first = False
    except (OSError, EOFError, lzma.LZMAError) as error:
        expected = f"expected a whole {compression} file" if compression else "expected a readable file"
        raise RecordingError(f"cannot read {path}: {error}; {expected}; copy or record it again") from error


def _decompressed(raw: BinaryIO, compression: str | None) -> Iterator[bytes]:
    if compression is None:
        stream: BinaryIO = raw
    elif compression == "xz":
        stream = cast("BinaryIO", lzma.open(raw))  # noqa: SIM115 - its caller closes what is below it
    else:
        # Arrow reports a cut-off stream for each of these; the zstandard package silently ends.
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
    while block := stream.read(BLOCK_BYTES):
        yield block


def _lines(path: Path, moved: Moved) -> Iterator[tuple[list[bytes], bool]]:
    """Physical lines without their newline, and whether any of them may hold a quote."""
    tail = b""
    for block in blocks(path, moved):
        text = tail + block
        lines = text.split(b"\n")
        tail = lines.pop()
        if len(tail) > LINE_MAX_BYTES:
            raise RecordingError(
                f"{path} has a line of more than {LINE_MAX_BYTES} bytes: expected one row per line; "
                "check that it is CSV or JSON lines"
            )
        if lines:
            yield lines, b'"' in text
    if tail:
        yield [tail], b'"' in tail


def json_rows(path: Path, moved: Moved = _ignore) -> Iterator[list[bytes]]:
    """Lines of a JSON-lines file in order, in lists of any length; blank lines are left out."""
    for lines, _ in _lines(path, moved):
        yield [line.removesuffix(b"\r") for line in lines if line.strip()]


def csv_rows(path: Path, delimiter: str, moved: Moved = _ignore) -> Iterator[list[bytes]]:
    """Rows of a CSV file in order, the header first, in lists of any length; empty lines are left out.

    Lines inside a quoted field are joined with their newline. A line that opens a quote which nothing closes
    within `QUOTED_ROW_MAX_BYTES` is a row by itself.
    """
    joiner = _Joiner(delimiter.encode())
    for lines, quoted in _lines(path, moved):
        yield _clean(joiner.join(lines) if quoted or joiner.waiting else lines)
    yield _clean(joiner.rest())


def _clean(rows: list[bytes]) -> list[bytes]:
    return list(filter(None, [row.removesuffix(b"\r") for row in rows]))


class _Joiner:
    """Puts the physical lines of quoted fields together again."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        self._held: list[bytes] = []  # lines of a row that is open at its end
        self._held_bytes = 0

    @property
    def waiting(self) -> bool:
        """True inside a quoted field."""
        return bool(self._held)

    def join(self, lines: list[bytes]) -> list[bytes]:
        """Rows that end in these lines."""
        rows: list[bytes] = []
        todo = lines[::-1]
        while todo:
            line = todo.pop()
            if not self._held and line.count(b'"') % 2 == 0:  # what nearly every line is
                rows.append(line)
                continue
            still_open = self._ends_inside(line)
            if not still_open:
                rows.append(b"\n".join([*self._held, line]))
                self._clear()
            elif self._held_bytes + len(line) > QUOTED_ROW_MAX_BYTES:
                todo.extend([line, *self._held[::-1]])
                rows.append(todo.pop())
                self._clear()
            else:
                self._held.append(line)
                self._held_bytes += len(line) + 1
        return rows

    def rest(self) -> list[bytes]:
        """Rows of what is left at the end of the file, where no quote can close any more."""
        rows: list[bytes] = []
        while self._held:
            first, *others = self._held
            self._clear()
            rows += [first, *self.join(others)]
        return rows

    def _clear(self) -> None:
        self._held = []
        self._held_bytes = 0

    def _ends_inside(self, line: bytes) -> bool:
        """Whether a quoted field is open at the end of the line.

        As in the csv module, a quote opens a field only as its first character.
        """
        at = 0
        inside = self.waiting
        while True:
            if inside or line.startswith(b'"', at):
                closing = _CLOSING_QUOTE.match(line, at if inside else at + 1)
                if closing is None:
                    return True
                at, inside = closing.end(), False
            at = line.find(self._delimiter, at) + 1
            if at == 0:
                return False


@dataclass(frozen=True, slots=True)
class CsvLayout:
    """Column names of a CSV file, and what stands between them."""

    header: tuple[str, ...]
    delimiter: str


def csv_layout(path: Path) -> CsvLayout:
    """Read the header, and make sure that a row follows it.

    Raises:
        RecordingError: no rows, or no usable header: not UTF-8, a name twice, or numbers in place of names.
    """
    line = next((row for rows in csv_rows(path, ",") for row in rows), None)
    if line is None:
        raise RecordingError(f"{path} is empty: expected a line with column names, then one row per line")
    delimiter = _delimiter(line)
    rows = (row for some in csv_rows(path, delimiter) for row in some)
    first = next(rows)
    if next(rows, None) is None:
        raise RecordingError(f"{path} holds only a header: expected rows after it; check that it is complete")
    try:
        names = next(csv.reader([first.decode()], delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(
            f"{path} has an unreadable header ({error}): expected column names in UTF-8; convert the file"
        ) from error
    return CsvLayout(_names(path, names), delimiter)


def _delimiter(line: bytes) -> str:
    unquoted = re.sub(rb'"(?:[^"]|"")*+"', b"", line)
    return max(DELIMITERS, key=lambda d: unquoted.count(d.encode()))  # the first of equals: the comma


def _names(path: Path, cells: list[str]) -> tuple[str, ...]:
    # Data frames are often written with a nameless index column in front.
    names = tuple(cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RecordingError(f"{path} names a column twice ({', '.join(repeated)}): rename one of them")
    # Data frames without names are written as 0,1,2: names all the same. Decimals are data.
    if all(map(_is_number, names)) and not all(name.isdigit() for name in names):
        raise RecordingError(
            f"{path} begins with data ({', '.join(names[:4])}): expected a line with column names; add one"
        )
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
