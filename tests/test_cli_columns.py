"""`--columns FILE`: a table beside plain embeddings, for filters and for what is shown."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_cases import vectors

from divse.search.gallery import Gallery

SETS = vectors(4, 3, 8)
NAMES = ["a", "b", "007", "d"]
ABOUT = """id,year,label,seen,share,old
d,2013,"a dog, barking",2020-01-05,0.5,true
a,2010,cat,2020-01-02,0.25,false
007,2012,,2020-01-04,,true
b,2011,"two
lines",2020-01-03,1,false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("sets.npy", SETS)
    np.savez("sets.npz", embeddings=SETS, ids=np.array([5, 6, 7, 8]))
    np.savez("whole.npz", SETS)
    np.save("q.npy", SETS[2:3])
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "about.csv").write_text(ABOUT)
    (tmp_path / "about.tsv").write_text("id\tyear\n8\t8\n6\t6\n7\t7\n5\t5\n")
    (tmp_path / "years.csv").write_text("year\n2010\n2011\n2012\n2013\n")
    return tmp_path


def built(cli, *options):
    code, _, err = cli("build", "g", "--overwrite", *options)
    assert (code, err) == (0, ""), err
    return Gallery.open("g")


def column(gallery, name):
    return gallery.columns[name].to_pylist()


def test_from_plain_numpy_to_a_filtered_answer(folder, cli):
    pytest.importorskip("duckdb")
    gallery = built(cli, "--embeddings", "sets.npy", "--columns", "years.csv")
    assert gallery.ids.tolist() == [0, 1, 2, 3]
    query = ("query", "g", "--embeddings", "q.npy", "--where", "year >= 2012", "--json")
    hits = json.loads(cli(*query)[1])["hits"]
    assert [(hit["id"], hit["year"]) for hit in hits] == [(2, 2012), (3, 2013)]


def test_rows_are_matched_by_id_and_keep_their_types(folder, cli):
    options = ("--embeddings", "sets.npy", "--ids", "names.txt", "--columns", "about.csv")
    gallery = built(cli, *options)
    assert gallery.ids.tolist() == NAMES
    assert column(gallery, "year") == [2010, 2011, 2012, 2013]
    assert column(gallery, "label") == ["cat", "two\nlines", "", "a dog, barking"]
    assert column(gallery, "seen")[3] == datetime.date(2020, 1, 5)
    assert column(gallery, "share") == [0.25, 1.0, None, 0.5]
    assert column(gallery, "old") == [False, False, True, True]
    pytest.importorskip("duckdb")
    query = ("query", "g", "--embeddings", "q.npy", "--json", "--where", "seen > '2020-01-04'")
    assert [hit["seen"] for hit in json.loads(cli(*query)[1])["hits"]] == ["2020-01-05"]


def test_ids_of_a_table(folder, cli):
    about = ("--ids", "about.csv", "--columns", "about.csv")
    gallery = built(cli, "--embeddings", "sets.npy", *about)
    assert gallery.ids.tolist() == ["d", "a", "007", "b"]
    assert column(gallery, "year") == [2013, 2010, 2012, 2011]
    assert built(cli, "--embeddings", "sets.npy", "--ids", "about.tsv").ids.tolist() == [8, 6, 7, 5]


def test_whole_ids_of_up_to_64_bits(folder, cli):
    """Longer ones are text, as no gallery has numbers so great."""
    for first, kind in ((2**63 - 4, int), (2**63 - 3, str)):
        ids = [first + row for row in range(4)]
        lines = [f"{value},{place}" for place, value in enumerate(ids)]
        (folder / "great.csv").write_text("\n".join(["id,year", *lines[::-1]]))
        np.save("ids.npy", ids if kind is int else list(map(str, ids)))
        options = ("--embeddings", "sets.npy", "--ids", "ids.npy", "--columns", "great.csv")
        gallery = built(cli, *options)
        assert gallery.ids.tolist() == list(map(kind, ids))
        assert column(gallery, "year") == [0, 1, 2, 3]


@pytest.mark.parametrize("ids", ["later.csv", "later.txt"])
@pytest.mark.parametrize("first", [["a", "b", "c", "d"], [1, 2, 3, 4]])
def test_ids_become_what_the_gallery_has(folder, cli, first, ids):
    """A file of digits does not tell whether they are numbers, the gallery does."""
    np.save("first.npy", first)
    later = ["5", "6", "7", "8"] if isinstance(first[0], str) else [5, 6, 7, 8]
    (folder / "later.csv").write_text("id,year\n5,5\n6,6\n7,7\n8,8\n")
    (folder / "later.txt").write_text("5\n6\n7\n8\n")
    sets = ("--embeddings", "sets.npy", "--ids")
    built(cli, "--embeddings", "sets.npy", "--ids", "first.npy")
    assert cli("add", "g", *sets, ids)[0] == 0
    assert Gallery.open("g").ids.tolist() == first + later
    assert cli("update", "g", *sets, ids)[0] == 0
    code, out, _ = cli("query", "g", "--embeddings", "q.npy", "--allowed-ids", ids, "--json")
    assert code == 0 and all(f'"id": {json.dumps(value)},' in out for value in later)
    assert cli("remove", "g", "--ids", ids)[0] == 0
    assert Gallery.open("g").ids.tolist() == first


@pytest.mark.parametrize("name", ["sets.npz", "whole.npz"])
def test_archives_of_numpy(folder, cli, name):
    gallery = built(cli, "--embeddings", name)
    np.testing.assert_allclose(gallery.sets().values, SETS, atol=1e-3)
    assert gallery.ids.tolist() == ([5, 6, 7, 8] if name == "sets.npz" else [0, 1, 2, 3])
    if name == "sets.npz":
        gallery = built(cli, "--embeddings", name, "--columns", "about.tsv")
        assert column(gallery, "year") == [5, 6, 7, 8]


def test_parquet_keeps_what_it_holds(folder, cli):
    tags = [["x"], ["y", "z"], [], None]
    pq.write_table(pa.table({"id": NAMES[::-1], "tags": tags}), "tags.parquet")
    options = ("--embeddings", "sets.npy", "--ids", "names.txt", "--columns", "tags.parquet")
    assert column(built(cli, *options), "tags") == tags[::-1]


def test_columns_join_those_of_the_embeddings(folder, cli):
    sets = {"id": NAMES, "embeddings": SETS.tolist(), "size": [1, 2, 3, 4]}
    pq.write_table(pa.table(sets), "sets.parquet")
    gallery = built(cli, "--embeddings", "sets.parquet", "--columns", "about.csv")
    assert column(gallery, "size") == [1, 2, 3, 4] and column(gallery, "year")[3] == 2013
    pq.write_table(pa.table({"id": NAMES, "size": [1, 2, 3, 4]}), "size.parquet")
    code, _, err = cli("build", "h", "--embeddings", "sets.parquet", "--columns", "size.parquet")
    assert code == 1 and "size.parquet: the sets have a column 'size' already" in err


def test_a_gallery_tells_the_types_of_what_is_added(folder, cli):
    """Labels that are all digits in a later file stay texts, whole numbers become fractions."""
    (folder / "first.csv").write_text("label,share\nx,0.5\ny,1\n007,2\nz,3\n")
    (folder / "later.csv").write_text("label,share\n007,1\n008,2\n009,3\n010,4\n")
    built(cli, "--embeddings", "sets.npy", "--columns", "first.csv")
    assert cli("add", "g", "--embeddings", "sets.npy", "--columns", "later.csv")[0] == 0
    gallery = Gallery.open("g")
    assert column(gallery, "label")[4:] == ["007", "008", "009", "010"]
    assert column(gallery, "share")[4:] == [1.0, 2.0, 3.0, 4.0]
    np.save("ids.npy", [1, 6])
    np.save("two.npy", SETS[:2])
    (folder / "new.csv").write_text("share,id,label\n0,6,six\n9,1,one\n")
    update = ("update", "g", "--embeddings", "two.npy", "--ids", "ids.npy", "--columns", "new.csv")
    assert cli(*update)[0] == 0
    rows = {row["id"]: row for row in Gallery.open("g").rows.to_pylist()}
    assert rows[1] == {"id": 1, "label": "one", "share": 9.0} and rows[6]["label"] == "six"
    assert rows[0]["label"] == "x"


TABLES = {
    "one row less": ("", "year\n1\n2\n3\n", "t.csv has 3 rows for 4 sets: give one for each"),
    "ids for sets without": ("", "id,year\n0,1\n1,1\n2,1\n3,1\n", "give --ids t.csv too if its"),
    "no ids": ("names.txt", "year\n1\n2\n3\n4\n", "has no column id to match the ids of the sets"),
    "a set without a row": ("names.txt", "id,x\na,1\nb,2\n007,3\n", "has no row for id 'd'"),
    "zeros are part of an id": ("names.txt", "id,x\na,1\nb,2\n7,3\nd,4\n", "no row for id '007'"),
    "a row without a set": (
        "names.txt",
        "id,x\na,1\nb,2\n007,3\nd,4\ne,5\n",
        "has a row for id 'e', which is no set's",
    ),
    "an id twice": ("names.txt", "id,x\na,1\nb,2\n007,3\nd,4\nd,4\n", "id 'd' occurs twice"),
    "an empty id": ("names.txt", "id,x\na,1\n,2\n007,3\nd,4\n", "1 rows have no id"),
    "words for numbers": ("5.json", "id,x\na,1\nb,2\nc,3\nd,4\n", "has ids of type string, the"),
    "score": ("", "year,Score\n1,2\n3,4\n5,6\n7,8\n", "a column 'Score' would hide that of the"),
    "rank": ("", "rank\n1\n3\n5\n7\n", "a column 'rank' would hide that of the answers"),
    "ID": ("names.txt", "ID,x\na,1\nb,2\n007,3\nd,4\n", "a column 'ID' would hide the ids"),
    "two of a name": ("", "x,x\n1,2\n3,4\n5,6\n7,8\n", "there are two columns called 'x'"),
    "of no name": ("", ",x\n0,2\n1,4\n2,6\n3,8\n", "column 1 has no name (pandas writes"),
    "ragged lines": ("", "x,y\n1,2\n3\n5,6\n7,8\n", "t.csv cannot be read: CSV parse error"),
    "no rows": ("names.txt", "id,x\n", "t.csv has no rows"),
    "nothing": ("", "", "t.csv cannot be read: Empty CSV file"),
    "no text": ("", b"x\n\xff\xfe\n", "t.csv cannot be read"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_do_not_fit_are_refused(folder, cli, case):
    ids, content, message = TABLES[case]
    (folder / "5.json").write_text("[5, 6, 7, 8]")
    (folder / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ("--ids", ids) if ids else ()
    code, out, err = cli("build", "g", "--embeddings", "sets.npy", "--columns", "t.csv", *options)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1
    assert not (folder / "g").exists()


SEPARATED = {
    "t.csv": {
        "id;year": "separated by semicolons, expected commas: save it with commas",
        '\ufeff"id";year': "separated by semicolons, expected commas",  # as spreadsheets write
        "id\tyear": "separated by tabs, expected commas: call it t.tsv",
    },
    "t.tsv": {
        "id,year": "separated by commas, expected tabs: call it t.csv",
        "id;year": "separated by semicolons, expected tabs: save it with tabs",
    },
}


@pytest.mark.parametrize("option", ["--columns", "--ids"])
@pytest.mark.parametrize("name", SEPARATED)
def test_another_separator_is_noticed(folder, cli, name, option):
    for header, message in SEPARATED[name].items():
        mark = header.removesuffix("year")[-1]
        rows = "".join(f"{id}{mark}1,5\n" for id in NAMES)
        (folder / name).write_text(f"{header}\n{rows}", encoding="utf-8")
        code, _, err = cli("build", "g", "--embeddings", "sets.npy", option, name)
        assert code == 1 and message in err and err.count("\n") == 1


def test_names_may_hold_other_separators(folder, cli):
    (folder / "one.csv").write_text('"year; about"\n1\n2\n3\n4\n')
    (folder / "two.csv").write_text("year;month,day\n1,1\n2,2\n3,3\n4,4\n")
    for name, columns in (("one.csv", ["year; about"]), ("two.csv", ["year;month", "day"])):
        gallery = built(cli, "--embeddings", "sets.npy", "--columns", name)
        assert list(gallery.columns) == columns


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "none.csv: there is no such file"),
        ("names.txt", "names.txt: expected a file called *.csv, *.tsv, *.parquet"),
        ("broken.parquet", "broken.parquet cannot be read"),
        ("latin.csv", "latin.csv cannot be read"),
    ],
)
def test_files_that_are_no_tables(folder, cli, name, message):
    (folder / "broken.parquet").write_text("nothing of the kind")
    (folder / "latin.csv").write_bytes("été,x\n1,2\n".encode("latin-1"))
    code, _, err = cli("build", "g", "--embeddings", "sets.npy", "--columns", name)
    assert code == 1 and message in err and err.count("\n") == 1


def test_a_gallery_with_columns_wants_them_of_new_sets(folder, cli):
    built(cli, "--embeddings", "sets.npy", "--columns", "years.csv")
    code, _, err = cli("add", "g", "--embeddings", "sets.npy")
    assert code == 1 and "the gallery has columns ['year'], these rows have []" in err


def test_archives_that_are_none(folder, cli):
    (folder / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    np.savez("two.npz", a=SETS, b=SETS)
    np.savez("pickled.npz", embeddings=np.array([{}], dtype=object))
    (folder / "sets.npy").rename(folder / "array.npz")
    for name, message in {
        "broken.npz": "broken.npz is no .npz archive",
        "two.npz": "two.npz: expected one array called embeddings, found a, b",
        "pickled.npz": "pickled.npz does not hold plain numbers",
        "array.npz": "array.npz is no .npz archive; a single array",
    }.items():
        code, _, err = cli("build", "g", "--embeddings", name)
        assert code == 1 and message in err, name


@pytest.mark.parametrize("fixed", [False, True])
def test_half_precision_lists_of_parquet(folder, cli, fixed):
    halves = pa.array(SETS.astype(np.float16).reshape(-1))
    if fixed:
        lists = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(halves, 8), 3)
    else:
        vectors_of = pa.ListArray.from_arrays(np.arange(0, 97, 8, dtype=np.int32), halves)
        lists = pa.ListArray.from_arrays(np.arange(0, 13, 3, dtype=np.int32), vectors_of)
    pq.write_table(pa.table({"embeddings": lists}), "halves.parquet")
    stored = built(cli, "--embeddings", "halves.parquet").sets().values
    np.testing.assert_allclose(stored, SETS, atol=1e-3)
