"""Tables as spreadsheets and other systems leave them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

_SEPARATORS = (",", ";", "\t")
# A first line that spreadsheets write and read.
_NAMED_SEPARATOR = re.compile("sep=([,;\t|])")


def read_table(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line that is not empty, the header first.

    Encodings are UTF-8, UTF-16, UTF-32 and Windows-1252, separators the comma, the
    semicolon and the tab, line ends those of any system. Errors name the file and the
    line.
    """
    with open(path, "rb") as file:
        text = _decoded(file.read(), path)
    # Such as the mark by which DOS ends a file, and those between files put together.
    text = _with_line_feeds(text.rstrip("\x1a\0").replace("\ufeff", ""))
    first = text.lstrip().partition("\n")[0]
    named = _NAMED_SEPARATOR.fullmatch(first)
    unquoted = re.sub('"[^"]*"', "", first)
    separator = named[1] if named else max(_SEPARATORS, key=unquoted.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    n_fields = 0
    while True:
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path!r}, line {reader.line_num}: {error}.") from error
        if not any(fields) or (named and not n_fields and fields[0] == "sep="):
            continue
        if not n_fields:
            n_fields = len(fields)
        while len(fields) > n_fields and not fields[-1]:
            fields.pop()
        if len(fields) != n_fields:
            raise ValueError(
                f"{path!r}, line {reader.line_num}: expected {n_fields} fields, found "
                f"{fields!r}."
            )
        yield reader.line_num, fields


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes, path: str) -> str:
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encodings = ["utf-32"]
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:4]:
        encodings = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            reason = error
    before = content[: reason.start].decode(encoding, "replace")
    line = _with_line_feeds(before).count("\n") + 1
    raise ValueError(
        f"{path!r}, line {line}: expected a table in UTF-8, UTF-16 or Windows-1252, "
        f"found bytes that are none of these ({reason.reason})."
    )
