"""Catalogues: every kind of file gives the same rows, and a bad row is one bad row."""

import codecs
import csv
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.catalogs import Catalogue, CatalogueError, Row, open_catalogue, table
from orchestrator.settings import Settings

Write = Callable[..., Catalogue]
Values = dict[str, str | None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a catalogue file and opens it."""

    def write(content: str | bytes, name: str = "catalogue.csv") -> Catalogue:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_catalogue(tmp_path / name, Settings())

    return write


def good(catalogue: Catalogue) -> list[tuple[int, Values]]:
    return [(row.line, row.values) for row in catalogue.rows() if row.problem is None]


def bad(catalogue: Catalogue) -> list[tuple[int, str, str | None]]:
    return [(row.line, row.problem.code, row.problem.column) for row in catalogue.rows() if row.problem]


def messages(catalogue: Catalogue) -> str:
    return "\n".join(row.problem.message for row in catalogue.rows() if row.problem)


# Every kind


def as_csv(rows: list[Values], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def as_tsv(rows: list[Values], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def as_jsonl(rows: list[Values], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(rows: list[Values], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


KINDS = {"c.csv": as_csv, "C.TSV": as_tsv, "c.jsonl": as_jsonl, "c.ndjson": as_jsonl, "c.parquet": as_parquet}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows: list[Values] = [
        {"image": f"photos/{number}.jpg", "prompt": "white, é 服\nsecond line", "seed": None, "sku": f"{number}"}
        for number in range(10)
    ]
    KINDS[name](rows, tmp_path / name)
    catalogue = open_catalogue(tmp_path / name, Settings())
    assert [row.values for row in catalogue.rows()] == rows
    assert catalogue.columns == ("image", "prompt", "seed", "sku")
    assert catalogue.image_root == str(tmp_path)
    assert catalogue.uri == str(tmp_path / name)
    assert catalogue.warnings == ()
    assert not catalogue.is_empty()
    lines = [row.line for row in catalogue.rows()]
    assert lines == sorted(set(lines))
    assert [row.line for row in catalogue.rows(after_line=lines[6])] == lines[7:]
    assert list(catalogue.rows(after_line=lines[-1])) == []


@pytest.mark.parametrize("name", KINDS)
def test_memory_stays_flat(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KEPT_CHARACTERS", 1_000_000)
    KINDS[name]([{"image": f"photos/{number}.jpg", "prompt": "x" * 600} for number in range(12_000)], tmp_path / name)
    catalogue = open_catalogue(tmp_path / name, Settings())
    next(iter(catalogue.rows()))  # modules that the first row imports stay
    tracemalloc.start()
    assert sum(1 for _ in catalogue.rows()) == 12_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the file has 7.5 MB


# Catalogues that cannot be read


def test_a_missing_column_is_said_with_the_nearest(write: Write) -> None:
    with pytest.raises(
        CatalogueError, match=r"catalogue\.csv, line 1: no column 'image'; rename 'Images' to 'image'"
    ) as caught:
        write("Images,prompt\na.jpg,x\n")
    assert "columns found: 'Images', 'prompt'" in str(caught.value)
    with pytest.raises(CatalogueError, match="no column 'image'; name the column that holds the pictures"):
        write("sku,prompt\n1,x\n")
    with pytest.raises(CatalogueError, match="no column 'image'"):
        write('{"imgae": "a.jpg"}\n', "c.jsonl")


def test_a_column_that_stands_twice_is_said(write: Write) -> None:
    with pytest.raises(CatalogueError, match=r"column 'prompt' stands twice \(columns 2 and 3\)"):
        write("image,prompt, Prompt \na.jpg,x,y\n")


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl"])
@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8])
def test_an_empty_file_is_said(write: Write, name: str, content: bytes) -> None:
    with pytest.raises(CatalogueError, match=f"{name} is empty"):
        write(content, name)


@pytest.mark.parametrize(
    ("name", "content"), [("c.csv", "\n\n ,\n"), ("c.csv", "image,prompt\n"), ("c.csv", "image\n\n,\n")]
)
def test_a_file_without_rows_is_empty(write: Write, name: str, content: str) -> None:
    if "image" not in content:
        with pytest.raises(CatalogueError):
            write(content, name)
    else:
        catalogue = write(content, name)
        assert catalogue.is_empty()
        assert list(catalogue.rows()) == []


def test_files_of_the_other_kinds_without_rows_are_empty(write: Write, tmp_path: Path) -> None:
    assert write("\n\n", "c.jsonl").is_empty()
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert open_catalogue(tmp_path / "c.parquet", Settings()).is_empty()


def test_a_missing_file_is_said_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "catalogue.csv").write_text("image\n")
    with pytest.raises(CatalogueError, match=r"catalog\.csv does not exist; did you mean catalogue\.csv\?"):
        open_catalogue(tmp_path / "catalog.csv", Settings())
    with pytest.raises(CatalogueError, match="does not exist"):
        open_catalogue(tmp_path / "no" / "such.csv", Settings())
    with pytest.raises(CatalogueError, match=r"photos does not exist; expected .csv, .tsv, .jsonl"):
        open_catalogue(tmp_path / "photos", Settings())


def test_an_unknown_kind_is_said(write: Write) -> None:
    with pytest.raises(CatalogueError, match=r"c\.txt: unknown kind of catalogue; expected \.csv"):
        write("image\n", "c.txt")
    with pytest.raises(CatalogueError, match="save the sheet as CSV UTF-8"):
        write(b"PK\3\4", "c.xlsx")
    with pytest.raises(CatalogueError, match="is an Excel workbook; save it as CSV UTF-8"):
        write(b"PK\3\4more", "c.csv")
    with pytest.raises(CatalogueError, match="https:// is not supported"):
        open_catalogue("https://example.com/c.csv", Settings())


def test_a_damaged_parquet_file_is_said(write: Write, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"c\.parquet cannot be read as Parquet"):
        write(b"PAR1 no more", "c.parquet")
    pq.write_table(pa.table({"image": [["a.jpg"]]}), tmp_path / "l.parquet")
    with pytest.raises(CatalogueError, match=r"column image: holds list<.*>; expected text"):
        open_catalogue(tmp_path / "l.parquet", Settings())


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.catalogs.encoding.MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(CatalogueError, match="line 2: longer than 1 MiB"):
        write("image\n" + "x" * (3 << 20))


def test_a_header_with_a_broken_quote_is_said(write: Write) -> None:
    with pytest.raises(CatalogueError, match=r"line \d: the header cannot be read"):
        write('"image,prompt\na.jpg,x\n')


# CSV: encodings, line ends, quotes


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_byte_order_marks_and_line_ends_change_nothing(write: Write, codec: str, end: str) -> None:
    catalogue = write(end.join([" Image , Größe", "a.jpg,é服", "b.jpg,"]).encode(codec))
    assert catalogue.columns == ("image", "Größe")
    assert good(catalogue) == [(2, {"image": "a.jpg", "Größe": "é服"}), (3, {"image": "b.jpg", "Größe": None})]
    assert catalogue.warnings == ()


@pytest.mark.parametrize(("codec", "called"), [("cp1252", "Windows-1252"), ("latin-1", "Latin-1")])
def test_latin_1_is_read_and_told(write: Write, codec: str, called: str) -> None:
    text = "image,prompt\na.jpg,plain\nü.jpg,déjà vu" + ("\x81" if codec == "latin-1" else "€")
    catalogue = write(text.encode(codec))
    assert good(catalogue)[1][1]["image"] == "ü.jpg"
    assert bad(catalogue) == []
    (warning,) = catalogue.warnings
    assert "catalogue.csv, line 3: not UTF-8" in warning
    assert called in warning


def test_a_few_bad_bytes_in_utf_8_fail_their_rows_only(write: Write) -> None:
    lines = ["image,prompt", *(f"{number}.jpg,Größe für Männer" for number in range(5))]
    data = "\n".join(lines).encode().replace(b"3.jpg,Gr\xc3\xb6", b"3.jpg,Gr\xf6")
    catalogue = write(data)
    assert [line for line, _ in good(catalogue)] == [2, 3, 4, 6]
    assert good(catalogue)[0][1]["prompt"] == "Größe für Männer"
    assert bad(catalogue) == [(5, "bad_text", "prompt")]
    assert "catalogue.csv, line 5, column prompt, character 3: holds the byte 0xF6, which is not UTF-8" in messages(
        catalogue
    )
    assert "line 5: not UTF-8" in catalogue.warnings[0]


def test_a_nul_fails_its_row_only(write: Write) -> None:
    catalogue = write("image,prompt\na.jpg,x\nb.jpg,x\0y\nc.jpg,z\n")
    assert bad(catalogue) == [(3, "bad_text", "prompt")]
    assert "line 3, column prompt, character 2: holds a NUL" in messages(catalogue)
    assert [line for line, _ in good(catalogue)] == [2, 4]


def test_quoted_line_breaks_keep_the_lines_true(write: Write) -> None:
    catalogue = write('image,prompt\r\na.jpg,"one\r\ntwo\r\n\r\nthree"\r\n\r\nb.jpg,"say ""hi"", please"\r\n')
    assert good(catalogue) == [
        (2, {"image": "a.jpg", "prompt": "one\r\ntwo\r\n\r\nthree"}),
        (7, {"image": "b.jpg", "prompt": 'say "hi", please'}),
    ]
    assert [row.line for row in catalogue.rows(after_line=2)] == [7]


def test_a_cell_of_a_million_characters_fails_its_row_only(write: Write) -> None:
    huge = "x" * 1_000_000
    for cell in (huge, f'"{huge}"', f'"{huge[:500_000]}\n,""{huge[500_000:]}"'):
        catalogue = write(f"image,prompt,sku\na.jpg,x,1\nb.jpg,{cell},2\nc.jpg,y,3\n")
        assert bad(catalogue) == [(3, "cell_too_long", "prompt")]
        assert "catalogue.csv, line 3, column prompt: longer than 131,072 characters" in messages(catalogue)
        assert [values["image"] for _, values in good(catalogue)] == ["a.jpg", "c.jpg"]
        assert [row.values for row in catalogue.rows() if row.problem] == [{"image": "b.jpg"}]


def test_an_unclosed_quote_fails_its_row_and_not_the_rest_of_the_file(write: Write) -> None:
    rest = "".join(f"{number}.jpg,plain\n" for number in range(50_000))
    catalogue = write(f'image,prompt\na.jpg,x\nb.jpg,"never closed\n{rest}')
    assert bad(catalogue) == [(3, "unclosed_quote", "prompt")]
    assert "line 3, column prompt: a quote is opened and never closed" in messages(catalogue)
    assert [line for line, _ in good(catalogue)] == [2, *range(4, 50_004)]


def test_an_unclosed_quote_that_meets_another_quote_fails_one_row(write: Write) -> None:
    catalogue = write('image,prompt\na.jpg,"open\nb.jpg,x\nc.jpg,"closed, fine"\nd.jpg,y\n')
    assert bad(catalogue) == [(2, "unclosed_quote", "prompt")] or bad(catalogue) == [(2, "bad_quote", "prompt")]
    assert [line for line, _ in good(catalogue)] == [3, 4, 5]


def test_text_after_a_closing_quote_fails_its_row_only(write: Write) -> None:
    catalogue = write('image,prompt\na.jpg,"red" dress\nb.jpg,5" heel\nc.jpg,z\n')
    assert bad(catalogue) == [(2, "bad_quote", "prompt")]
    assert "write a quote inside a cell twice" in messages(catalogue)
    assert good(catalogue)[0] == (3, {"image": "b.jpg", "prompt": '5" heel'})


def test_ten_thousand_broken_rows_are_read_in_one_go(write: Write) -> None:
    catalogue = write("image,prompt\n" + 'a.jpg,"x" y\nb.jpg,fine\n' * 10_000)
    assert len(bad(catalogue)) == len(good(catalogue)) == 10_000


def test_too_many_and_too_few_cells_fail_their_rows_only(write: Write) -> None:
    catalogue = write("image,prompt,sku\na.jpg,white, red,1\nb.jpg\nc.jpg,x,2\n")
    assert bad(catalogue) == [(2, "wrong_column_count", None), (3, "wrong_column_count", None)]
    assert "catalogue.csv, line 2: 4 cells where the header has 3 columns; put quotes around" in messages(catalogue)
    assert next(iter(catalogue.rows())).values["image"] == "a.jpg"
    assert [line for line, _ in good(catalogue)] == [4]


def test_blank_lines_and_rows_of_empty_cells_are_passed_over(write: Write) -> None:
    catalogue = write("\nimage,prompt\n\n,\na.jpg,x\n\n,,,\n")
    assert good(catalogue) == [(5, {"image": "a.jpg", "prompt": "x"})]
    assert bad(catalogue) == []


def test_semicolons_are_understood_and_told(write: Write) -> None:
    catalogue = write('image;prompt\na.jpg;"white, or red"\n')
    assert good(catalogue) == [(2, {"image": "a.jpg", "prompt": "white, or red"})]
    assert "separated by ';'" in catalogue.warnings[0]


def test_a_resumed_reading_sees_the_same_rows(write: Write) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["image", "prompt"])
    writer.writerows([f"{number}.jpg", "a\nb" * (number % 3)] for number in range(200))
    catalogue = write(buffer.getvalue() + 'x.jpg,"open\n' + "y.jpg,z\n" * 5)
    everything = list(catalogue.rows())
    for row in everything[::17]:
        assert list(catalogue.rows(row.line)) == [each for each in everything if each.line > row.line]


# JSONL


def test_numbers_and_booleans_keep_their_spelling(write: Write) -> None:
    catalogue = write(
        '{"image":"a.jpg","seed":9007199254740993,"guidance":2.50,"flag":true,"gone":null,"none":""}\n', "c.jsonl"
    )
    assert good(catalogue) == [
        (
            1,
            {
                "image": "a.jpg",
                "seed": "9007199254740993",
                "guidance": "2.50",
                "flag": "true",
                "gone": None,
                "none": None,
            },
        )
    ]


@pytest.mark.parametrize(
    ("line", "code", "column", "said"),
    [
        ('{"image": "a.jpg",', "bad_json", None, "line 2, character 20"),
        ("[1, 2]", "bad_json", None, "a list where a JSON object is expected"),
        ('"text"', "bad_json", None, "a single value where a JSON object"),
        ("[" * 100_000, "bad_json", None, "line 2"),
        ('{"image": ["a.jpg"]}', "wrong_type", "image", "line 2, column image: a list where one value is expected"),
        ('{"image": "a.jpg", "seed": {"a": 1}}', "wrong_type", "seed", "an object where one value"),
        ('{"image": "a.jpg", "Image": "b.jpg"}', "duplicate_key", "image", "line 2, column image"),
        ('{"image": "a\\u0000.jpg"}', "bad_text", "image", "NUL"),
        ('{"image": "a.jpg", "sku": "\\ud800"}', "bad_text", "sku", "surrogate"),
        (json.dumps({"image": "a.jpg", "prompt": "x" * 1_000_000}), "cell_too_long", "prompt", "131,072 characters"),
        pytest.param(
            f'{{"image": "a.jpg", "tags": [{"9" * 5000}]}}', "bad_json", "tags", "more than 4,300 digits", id="digits"
        ),
    ],
)
def test_a_bad_json_line_fails_alone(write: Write, line: str, code: str, column: str | None, said: str) -> None:
    catalogue = write(f'{{"image": "first.jpg"}}\n{line}\n{{"image": "last.jpg", "extra": 1}}\n', "c.jsonl")
    assert bad(catalogue) == [(2, code, column)]
    assert said in messages(catalogue)
    assert messages(catalogue).startswith("c.jsonl, line 2")
    assert [values["image"] for _, values in good(catalogue)] == ["first.jpg", "last.jpg"]


def test_other_columns_keep_nested_values_as_json(write: Write) -> None:
    catalogue = write('\ufeff{"IMAGE": "a.jpg", "tags": ["é", 1]}\n', "c.jsonl")
    assert good(catalogue) == [(1, {"image": "a.jpg", "tags": '["é", 1]'})]


def test_a_file_of_nothing_but_bad_json_is_said(write: Write) -> None:
    with pytest.raises(CatalogueError, match=r"c\.jsonl, line 1, character 1"):
        write("image,prompt\na.jpg,x\n", "c.jsonl")


# Parquet


def test_parquet_scalars_become_text(tmp_path: Path) -> None:
    columns = {
        "Image": pa.array(["a.jpg", "b.jpg"]).dictionary_encode(),
        "seed": pa.array([9007199254740993, None], pa.int64()),
        "steps": pa.array([28.0, float("nan")]),
        "guidance": pa.array([2.5, None], pa.float32()),
        "flag": pa.array([True, False]),
        "raw": pa.array([b"ok", None], pa.binary()),
        "tags": pa.array([["x"], None]),
        "empty": pa.array(["", None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    first, second = open_catalogue(tmp_path / "c.parquet", Settings()).rows()
    assert first == Row(
        1,
        {
            "image": "a.jpg", "seed": "9007199254740993", "steps": "28", "guidance": "2.5", "flag": "true", "raw": "ok",
            "tags": '["x"]', "empty": None,
        },
        None,
    )  # fmt: skip
    assert second.values["seed"] is None


def test_a_bad_parquet_value_fails_its_row_only(tmp_path: Path) -> None:
    columns = {
        "image": pa.array([b"a.jpg", b"\xff.jpg", b"c.jpg", b"d\0.jpg"], pa.binary()),
        "prompt": ["x", "x", "x" * 200_000, "x"],
    }
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    catalogue = open_catalogue(tmp_path / "c.parquet", Settings())
    assert bad(catalogue) == [(2, "bad_text", "image"), (3, "cell_too_long", "prompt"), (4, "bad_text", "image")]
    assert "c.parquet, row 3, column prompt" in messages(catalogue)
    assert [line for line, _ in good(catalogue)] == [1]


# Folders


def test_a_folder_gives_its_images_by_path(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.PNG", "a/b/c.webp", "B.jpeg", "x.tif", "x.tiff", "x.gif", "x.bmp", "a-b.jpg"]
    others = ["notes.txt", ".hidden.jpg", ".git/x.jpg", "a/.trash/y.png", "jpg", "raw.heic"]
    for name in [*names, *others]:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    catalogue = open_catalogue(tmp_path / "photos", Settings())
    assert good(catalogue) == [(line, {"image": name}) for line, name in enumerate(sorted(names), 1)]
    assert catalogue.columns == ("image",)
    assert catalogue.image_root == catalogue.uri == str(tmp_path / "photos")
    assert [row.line for row in catalogue.rows(after_line=7)] == [8, 9]


def test_a_folder_without_images_is_empty(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    assert open_catalogue(str(tmp_path), Settings()).is_empty()


def test_a_file_name_that_is_no_text_fails_its_row_only(tmp_path: Path) -> None:
    for name in (b"a.jpg", b"b\xff.jpg", b"c\n.jpg", b"d.jpg"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"x")
    catalogue = open_catalogue(tmp_path, Settings())
    assert bad(catalogue) == [(2, "bad_file_name", "image"), (3, "bad_file_name", "image")]
    assert [values["image"] for _, values in good(catalogue)] == ["a.jpg", "d.jpg"]
    messages(catalogue).encode()
