"""Bad input: for each kind one line on stderr that says what came, and its exit code.

The table is the specification: a command, run among the files below, and a part of its message.
"""

import json
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_cases import vectors
from safetensors.numpy import save_file

from divse.search.gallery import Gallery

SETS = vectors(6, 3, 8)
ARRAYS = {
    "sets": SETS,
    "one": SETS[:1],
    "none": SETS[:0],
    "ints": np.ones((4, 3, 8), dtype=np.int64),
    "bools": np.ones((4, 3, 8), dtype=bool),
    "words": np.array([[["a"]]]),
    "complex": SETS.astype(np.complex64),
    "nan": np.where(np.arange(6)[:, None, None] == 4, np.nan, SETS),
    "inf": np.where(np.arange(6)[:, None, None] == 4, np.inf, SETS),
    "zero": SETS * np.array([1, 0, 1], dtype=np.float32)[:, None],
    "wide": vectors(2, 3, 16),
    "tall": vectors(2, 5, 8),
    "flat": vectors(6, 8),
    "deep": vectors(2, 2, 2, 8),
    "line": vectors(8),
    "ids5": np.arange(5),
    "ids7": np.arange(7),
    "twice": np.array([1, 1, 2, 3, 4, 5]),
    "halves": np.arange(6) / 2,
    "long": np.array([1, 2, 3, 4, 1, 1]),
    "short": np.array([1, 2, 0, 1, 1, 1]),
    "lengths": np.ones(6),
}
TEXTS = {
    "five.txt": "a\nb\nc\nd\ne",
    "blank.txt": "a\n\nc\nd\ne\nf",
    "object.json": '{"a": 1}',
    "cut.json": "[1,",
    "null.json": "[1, 2, null, 4, 5, 6]",
    "mixed.json": '[1, "a", 3, 4, 5, 6]',
    "broken.npy": "nothing of the kind",
    "broken.safetensors": "nothing of the kind",
    "broken.parquet": "nothing of the kind",
}
TABLES = {
    "null_id": {"id": ["a", None], "embeddings": [[[1.0, 0]], [[0, 1.0]]]},
    "null_set": {"embeddings": [[[1.0, 0]], None]},
    "empty_set": {"embeddings": [[[1.0, 0]], []]},
    "dims": {"embeddings": [[[1.0, 0]], [[1.0, 0, 0]]]},
    "words": {"embeddings": [[["a"]]]},
    "no_list": {"year": [1]},
    "other": {"embeddings": [[[1.0] * 8] * 3], "colour": ["red"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are wrong, each in its way, and galleries: numbers, words, years, empty."""
    path = tmp_path_factory.mktemp("bad")
    for name, array in ARRAYS.items():
        np.save(path / f"{name}.npy", array)
    np.save(path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(path / "archive.npz", SETS)
    (path / "archive.npz").rename(path / "archive.npy")
    for name, text in TEXTS.items():
        (path / name).write_text(text)
    (path / "latin.txt").write_bytes(b"\xe9t\xe9\n")
    for name, columns in TABLES.items():
        pq.write_table(pa.table(columns), path / f"{name}.parquet")
    save_file({"embeddings": ARRAYS["ints"]}, path / "ints.safetensors")
    save_file({"a": SETS, "b": SETS}, path / "two.safetensors")
    Gallery.create(path / "numbers", SETS)
    Gallery.create(path / "words", SETS, list("abcdef"))
    Gallery.create(path / "years", SETS, columns={"year": range(6), "label": list("abcdef")})
    Gallery.create(path / "empty", SETS[:1]).remove([0])
    return path


BUILD = {
    "--embeddings none.npy": "there are no sets to store",
    "--embeddings missing.npy": "missing.npy: there is no such file",
    "--embeddings five.txt": "*.npy, *.npz, *.safetensors, *.parquet",
    "--embeddings ints.npy": "ints.npy holds int64; expected floating-point numbers",
    "--embeddings bools.npy": "bools.npy holds bool",
    "--embeddings words.npy": "words.npy holds str",
    "--embeddings complex.npy": "complex.npy holds complex64",
    "--embeddings ints.safetensors": "ints.safetensors holds I64",
    "--embeddings two.safetensors": "expected one array called embeddings, found a, b",
    "--embeddings nan.npy": "row 4: element 0 is not finite",
    "--embeddings inf.npy": "row 4: element 0 is not finite",
    "--embeddings zero.npy": "row 0: element 1 is zero",
    "--embeddings deep.npy": "holds shape (2, 2, 2, 8); expected (N, K, D)",
    "--embeddings line.npy": "holds shape (8,)",
    "--embeddings broken.npy": "broken.npy is no .npy file",
    "--embeddings broken.safetensors": "broken.safetensors is damaged",
    "--embeddings broken.parquet": "broken.parquet is damaged",
    "--embeddings pickled.npy": "no .npy file of plain numbers",
    "--embeddings archive.npy": "archive.npy is an .npz archive",
    "--embeddings null_id.parquet": "1 ids are missing (null)",
    "--embeddings null_set.parquet": "rows without embeddings (null)",
    "--embeddings empty_set.parquet": "has empty sets",
    "--embeddings dims.parquet": "differ in their dimensions",
    "--embeddings words.parquet": "column 'embeddings' holds string; expected numbers",
    "--embeddings no_list.parquet": "expected a list column called embeddings, found ['year']",
    "--embeddings sets.npy --ids ids5.npy": "got 5 ids for 6 sets",
    "--embeddings sets.npy --ids ids7.npy": "got 7 ids for 6 sets",
    "--embeddings sets.npy --ids five.txt": "got 5 ids for 6 sets",
    "--embeddings sets.npy --ids twice.npy": "id 1 occurs twice",
    "--embeddings sets.npy --ids halves.npy": "ids must be strings or integers",
    "--embeddings sets.npy --ids blank.txt": "blank.txt: line 2 is empty",
    "--embeddings sets.npy --ids latin.txt": "latin.txt is no UTF-8 text",
    "--embeddings sets.npy --ids object.json": "expected a JSON list of ids, found dict",
    "--embeddings sets.npy --ids cut.json": "cut.json is no JSON",
    "--embeddings sets.npy --ids null.json": "1 ids are missing (null)",
    "--embeddings sets.npy --ids mixed.json": "values of 'id' do not have one type",
    "--embeddings sets.npy --ids missing.txt": "missing.txt: there is no such file",
    "--embeddings sets.npy --lengths long.npy": "set 3 has length 4, expected 1 to 3",
    "--embeddings sets.npy --lengths short.npy": "set 2 has length 0",
    "--embeddings sets.npy --lengths lengths.npy": "lengths must be whole numbers",
    "--embeddings flat.npy --lengths ids5.npy": "expected one length for each set",
    "--model nowhere --texts five.txt": "nowhere: there is no such model folder",
    "--model nowhere --images nowhere": "no such model folder",
}
QUERY = {
    "numbers --embeddings wide.npy": "queries have D=16, the gallery has D=8",
    "numbers --embeddings none.npy": "there are no queries",
    "numbers --embeddings nan.npy": "element 0 of set 4 is not finite",
    "numbers --embeddings zero.npy": "element 1 of set 0 is zero",
    "numbers --embeddings ints.npy": "ints.npy holds int64",
    "numbers --embeddings sets.npy --ids five.txt": "got 5 ids for 6 sets",
    "empty --embeddings sets.npy": "empty is empty: every set was removed",
    "nowhere --embeddings sets.npy": "no gallery at nowhere",
    ". --embeddings sets.npy": "is not a gallery",
    "years --embeddings one.npy --where 'colour = 1'": "unknown column 'colour'; known are id and",
    "years --embeddings one.npy --where 'year >'": "is no condition: syntax error",
    "years --embeddings one.npy --where ''": "where: got nothing",
    "numbers --embeddings one.npy --allowed-ids ids7.npy": "no sets with these ids",
    "numbers --embeddings one.npy --allowed-ids five.txt": "ids are whole numbers, got 'a'",
    "words --embeddings one.npy --allowed-ids ids5.npy": "ids are string; these are int64",
    "numbers --embeddings one.npy --plan certified --similarity mp": "cannot serve this search",
    "numbers --embeddings one.npy --similarity mp --impl native": "no kernel for mp",
    "numbers --embeddings one.npy --alpha 0": "alpha: got 0",
    "numbers --embeddings one.npy --alpha nan": "alpha: got nan",
    "numbers --embeddings one.npy --contact-sheet s.png": "no column path",
    "numbers --text a": "records no model: name one with --model",
    "numbers --image a.png": "records no model",
    "numbers nowhere.jsonl": "no such file of queries",
}
CARE = {
    "build numbers --embeddings sets.npy": "--overwrite replaces it",
    "build sets.npy --embeddings sets.npy": "sets.npy is a file; a gallery is a folder",
    "add numbers --embeddings wide.npy": "sets have D=16, expected D=8",
    "add numbers --embeddings tall.npy": "sets have K=5, the gallery is uniform with K=3",
    "add numbers --embeddings flat.npy": "sets have K=1, the gallery is uniform with K=3",
    "add numbers --embeddings nan.npy": "row 4: element 0 is not finite",
    "add numbers --embeddings sets.npy --ids twice.npy": "id 1 occurs twice",
    "add numbers --embeddings one.npy --ids blank.txt": "line 2 is empty",
    "add words --embeddings sets.npy": "string ids: give ids for the new sets",
    "add words --embeddings sets.npy --ids twice.npy": "the gallery's ids are string",
    "add years --embeddings sets.npy": "the gallery has columns ['label', 'year']",
    "add numbers --embeddings other.parquet": "these rows have ['colour']",
    "add nowhere --embeddings sets.npy": "no gallery at nowhere",
    "add numbers --texts five.txt": "records no model",
    "update numbers --embeddings sets.npy": "update needs ids",
    "update numbers --embeddings sets.npy --ids twice.npy": "occurs twice",
    "update words --embeddings tall.npy --ids null.json": "got 6 ids for 2 sets",
    "remove numbers 17": "no sets with these ids in the gallery: 17",
    "remove numbers x": "the gallery's ids are whole numbers, got 'x'",
    "remove words x": "no sets with these ids in the gallery: 'x'",
    "export numbers out.csv": "expected .parquet or .npy",
    "export numbers nowhere/out.npy": "nowhere: there is no such folder",
    "info nowhere": "no gallery at nowhere",
    "verify .": "is not a gallery",
    "compact nowhere": "no gallery at nowhere",
    "index nowhere": "no gallery at nowhere",
    "index numbers --spec Nonsense": "Nonsense",
}
TABLE = {f"build new {options}": message for options, message in BUILD.items()}
TABLE |= {f"query {options}": message for options, message in QUERY.items()}
TABLE |= CARE


@pytest.mark.parametrize("command", TABLE)
def test_bad_input_is_named_in_one_line(folder, cli, monkeypatch, command):
    monkeypatch.chdir(folder)
    names = ("numbers", "words", "years", "empty")
    before = {name: Gallery.open(name).manifest for name in names}
    code, out, err = cli(*shlex.split(command))
    assert (code, out) == (1, "")
    assert TABLE[command] in err
    assert err.startswith("divse-search: error: ") and err.count("\n") == 1
    assert not (folder / "new").exists()
    assert before == {name: Gallery.open(name).manifest for name in before}


WRONG_USAGE = {
    "frobnicate": "No such command",
    "build": "Missing argument",
    "build g": "give one of --embeddings",
    "build g --images pictures": "need --model RUN",
    "build g --embeddings sets.npy --model m": "--embeddings need none",
    "build g --text a --embeddings sets.npy": "give one of",
    "build g --embeddings sets.npy --texts five.txt": "give one of",
    "build g --embeddings sets.npy --dtype int8": "'int8' is not one of",
    "add numbers": "give one of --embeddings",
    "remove numbers": "give ids, or --ids FILE",
    "remove numbers 1 --ids ids5.npy": "give ids, or --ids FILE",
    "query numbers": "give one of --embeddings",
    "query numbers --text a --embeddings sets.npy": "give one of",
    "query numbers - --text a": "not both",
    "query numbers --embeddings sets.npy --plan exact --depth 5": "are of --plan prefilter, not",
    "query numbers --embeddings sets.npy --plan fast": "'fast' is not one of",
    "query numbers --embeddings sets.npy --topk 0": "--topk",
    "query numbers --embeddings sets.npy --similarity dot": "'dot' is not one of",
    "query numbers --embeddings sets.npy --impl cuda": "'cuda' is not one of",
    "query numbers --embeddings sets.npy --alpha much": "--alpha",
    "query numbers --text a --lengths lengths.npy": "--lengths goes with --embeddings",
    "query numbers --embeddings sets.npy --model m": "--embeddings need none",
    "query numbers --embeddings sets.npy --candidates 5": "No such option",
}


@pytest.mark.parametrize("command", WRONG_USAGE)
def test_wrong_usage_ends_with_2(folder, cli, monkeypatch, command):
    monkeypatch.chdir(folder)
    code, out, err = cli(*shlex.split(command))
    assert (code, out) == (2, "") and WRONG_USAGE[command] in " ".join(err.split())


def test_fewer_sets_than_asked_for_is_no_error(folder, cli):
    query = ("query", folder / "numbers", "--embeddings", folder / "one.npy", "--topk", 99)
    code, out, err = cli(*query, "--json")
    assert (code, err) == (0, "") and len(json.loads(out)["hits"]) == 6
