"""Tables as spreadsheets and other systems leave them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

_SEPARATORS = (",", ";", "\t", "|")
# A first line that spreadsheets write and read, and may have saved as a row since.
_NAMED_SEPARATOR = re.compile('"?sep=([,;\t|])"?[,;\t| ]*', re.IGNORECASE)
# How spreadsheets, and archives, which some of them are, begin.
_NO_TEXT = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b", b"%PDF")


def read_table(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line that is not empty, the header first.

    Encodings are UTF-8, UTF-16, UTF-32 and Windows-1252, separators the comma, the
    semicolon, the tab and the bar, line ends those of any system. Errors name the file
    and the line, that of a row its first.
    """
    with open(path, "rb") as file:
        text = _with_line_feeds(_decoded(file.read(), path))
    first = text.lstrip().partition("\n")[0]
    named = _NAMED_SEPARATOR.fullmatch(first)
    if named:
        text = text.replace(first, "", 1)
        first = text.lstrip().partition("\n")[0]
    unquoted = re.sub('"[^"]*"', "", first)
    separator = named[1] if named else max(_SEPARATORS, key=unquoted.count)
    # Strict, because a stray quote would have rows swallow those that follow.
    reader = csv.reader(
        io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True
    )
    n_fields = 0
    while True:
        line = reader.line_num + 1
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
            if "unexpected end" in reason:
                reason = 'a quote (") is opened and not closed'
            raise ValueError(f"{path!r}, line {line}: {reason}.") from error
        if not any(fields):
            continue
        if not n_fields:
            n_fields = len(fields)
        while len(fields) > n_fields and not fields[-1]:
            fields.pop()
        if len(fields) != n_fields:
            raise ValueError(
                f"{path!r}, line {line}: expected {n_fields} fields, found {fields!r}."
            )
        yield line, fields


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes, path: str) -> str:
    if content.startswith(_NO_TEXT):
        raise ValueError(
            f"{path!r} is a spreadsheet, an archive or a document, not a text: save "
            "the table as CSV."
        )
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encodings = ["utf-32"]
    elif b"\0\0\0" in content[:4]:
        encodings = ["utf-32-be" if content[0] == 0 else "utf-32-le"]
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:4]:
        encodings = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            before = content[: error.start].decode(encoding, "replace")
            reason = error.reason
            continue
        # Such as the mark by which DOS ends a file, and those between joined files.
        text = text.rstrip("\x1a\0").replace("\ufeff", "")
        before, is_no_text, _ = text.partition("\0")
        if not is_no_text:
            return text
        reason = "NUL"
        break
    line = _with_line_feeds(before).count("\n") + 1
    raise ValueError(
        f"{path!r}, line {line}: expected a table in UTF-8, UTF-16 or Windows-1252, "
        f"found bytes that are none of these ({reason})."
    )
