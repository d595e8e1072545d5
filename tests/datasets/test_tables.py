"""Tables as spreadsheets and other systems leave them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clipad_sklearn.datasets import load_sewer_ml, load_visa
from clipad_sklearn.datasets._tables import read_table

ROWS = [["object", "image"], ["Gehäuse", "a.png"], ["Schraube, M4", "b.png"]]


def text(separator: str) -> str:
    return "\n".join(separator.join(f'"{v}"' for v in row) for row in ROWS) + "\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_separators_and_line_ends(
    encoding: str, separator: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text(separator).replace("\n", end).encode(encoding))
    assert [fields for _, fields in read_table(str(path))] == ROWS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text(",").encode(encoding))
    assert [fields for _, fields in read_table(str(path))] == ROWS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"sep=;\r\na;b,c\r\n1;2\r\n", [["a", "b,c"], ["1", "2"]]),
        (b"\xef\xbb\xbfsep=\t\na\tb\n", [["a", "b"]]),
        (b"sep=|\na|b\n1|2\n", [["a", "b"], ["1", "2"]]),
        (b"a,b\n1,2\n\x1a", [["a", "b"], ["1", "2"]]),
        (b'"a, b, c";d\n1;2\n', [["a, b, c", "d"], ["1", "2"]]),
        (b'a,b\r\n"1\r\n2",3\r\n', [["a", "b"], ["1\n2", "3"]]),
        (
            b"\xef\xbb\xbfa,b\n1,2\n\xef\xbb\xbf3,4\n",
            [["a", "b"], ["1", "2"], ["3", "4"]],
        ),
        (b'a\r"x ""y"""\r', [["a"], ['x "y"']]),
        # The line saved again by a spreadsheet, or written by another one.
        (b'"sep=;"\r\n"a";"b"\r\n', [["a", "b"]]),
        (b"SEP=;\na;b\n", [["a", "b"]]),
        (b"sep=; \na;b,c\n", [["a", "b,c"]]),
        (b"sep=;;;;\na;b;;\n", [["a", "b", "", ""]]),
        (b'"a", "b"\n"1, 2", "3"\n', [["a", "b"], ["1, 2", "3"]]),
        (b'a|b|c,d\n1|2"|3\n', [["a", "b", "c,d"], ["1", '2"', "3"]]),
        ("a,b\n1,2\n".encode("utf-32-le"), [["a", "b"], ["1", "2"]]),
        ("a,b\n1,2\n".encode("utf-32-be"), [["a", "b"], ["1", "2"]]),
    ],
)
def test_what_spreadsheets_add(
    content: bytes, expected: list[list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    assert [fields for _, fields in read_table(str(path))] == expected


def test_blank_lines_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n\na; b ;;\n\n 1 ;2\n;;\n  \n3;4;;;\n")
    with pytest.raises(ValueError, match=r"table.csv', line 5: expected 4 fields"):
        list(read_table(str(path)))
    path.write_text("\n\na; b \n\n 1 ;2\n;;\n  \n3;4;;;\n")
    assert list(read_table(str(path))) == [
        (3, ["a", "b"]),
        (5, ["1", "2"]),
        (8, ["3", "4"]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1,2,3\n", "line 3: expected 2 fields"),
        (b"a,b\n1\n", "line 2: expected 2 fields"),
        (b"a,b\n\x81\x8d,2\n", "line 2: expected text in UTF-8"),
        (b"a,b\r1,2\r\x81\x8d,2\r", "line 3: expected text in UTF-8"),
        ("a,b\n\u0a0a,\u0a0a\n".encode("utf-16") + b"\0\xdc", "line 3: expected text"),
        (b'a,b\n"' + b"x" * 200_000 + b'",1\n', "line 2: field larger than"),
        # Rows must not go missing within a quote.
        (b'a,b\n1,"3 inch\n2,x\n3,y\n', "line 2: a quote .* is opened and not closed"),
        (b'a,b\n1,2\n"3,x\n4,"y"\n5,z\n', "line 3: ',' expected"),
        (b"a,b\n1,2\0\n", r"line 2: expected text .*\(NUL\)"),
    ],
)
def test_errors_name_file_and_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"table.csv', {message}"):
        list(read_table(str(path)))


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04ab", b"\x1f\x8b\x08", b"\xd0\xcf\x11\xe0"]
)
def test_spreadsheets_are_called_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"table.csv' is a spreadsheet.*save .* as CSV"
    ):
        list(read_table(str(path)))


VISA = "object,split,label,image,mask\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("n,test,normal,a.png,\nn,test,anomaly,a.png,m.png\n", "line 3: 'a.png' is t"),
        ("n,train,normal,a.png,\nn,test,normal,a.png,\n", "line 3: 'a.png' is there"),
        (",test,normal,a.png,\n", "line 2: the object is missing"),
    ],
)
def test_rows_of_visa(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(VISA + rows)
    for name in ("a.png", "m.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"1cls.csv', {message}"):
        load_visa(tmp_path)


def test_files_of_visa_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "split_csv").mkdir()
    rows = VISA + "n,test,normal,a.png,\n\nn,test,anomaly,b.png,m.png\n"
    (tmp_path / "split_csv" / "1cls.csv").write_text(rows)
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"m.png', named in .*csv', line 4\."):
        load_visa(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Filename,Defect\na.png,0\na.png,1\n", "line 3: 'a.png' is there already"),
        ("Filename,Defect,Defect\na.png,0,1\n", "column 'Defect' more than once"),
        (
            "Filename,Defect,RB\na.png,1,1.0\n",
            "line 2: expected RB 0 or 1, found '1.0'",
        ),
        ("Filename,Defect\n\nb.png,0\n", "the first is 'b.png' in line 3"),
    ],
)
def test_rows_of_sewer_ml(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "SewerML_Val.csv").write_text(text)
    (tmp_path / "a.png").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_sewer_ml(tmp_path)


def test_paths_of_another_system(tmp_path: Path) -> None:
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(
        b"object;split;label;image;mask\r\n\r\n"
        b"nut;test;normal;nut\\Data\\1.png;\r\n"
        b"nut;test;anomaly;nut\\Data\\2.png;nut\\Masks\\2.png\r\n"
    )
    for name in ("Data/1.png", "Data/2.png", "Masks/2.png"):
        (tmp_path / "nut" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "nut" / name)
    data = load_visa(tmp_path)
    assert data.target.tolist() == [1, -1]
    assert Path(data.masks[1]).is_file()
