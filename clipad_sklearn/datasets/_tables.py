"""Tables as spreadsheets and other systems leave them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from .._files import read_text

_SEPARATORS = (",", ";", "\t", "|")
# A first line that spreadsheets write and read, and may have saved as a row since.
_NAMED_SEPARATOR = re.compile('"?sep=([,;\t|])"?[,;\t| ]*', re.IGNORECASE)


def read_table(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line that is not empty, the header first.

    Encodings are UTF-8, UTF-16, UTF-32 and Windows-1252, separators the comma, the
    semicolon, the tab and the bar, line ends those of any system. Errors name the file
    and the line, that of a row its first.
    """
    text = read_text(path)
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
