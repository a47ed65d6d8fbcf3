"""The commands of divse-search that look after a gallery."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from gallery_cases import vectors


def test_a_gallery_is_looked_after(files, tmp_path, cli):
    g = tmp_path / "g"
    sets, ids = files / "sets.npy", files / "ids.txt"
    assert cli("build", g, "--embeddings", sets, "--ids", ids)[0] == 0
    np.save(tmp_path / "more.npy", vectors(2, 3, 8, seed=5))
    (tmp_path / "more.txt").write_text("thing 3\nnew thing")
    more = ("--embeddings", tmp_path / "more.npy", "--ids", tmp_path / "more.txt")
    code, _, err = cli("add", g, *more)
    assert code == 1 and "'thing 3' occurs twice" in err
    code, _, err = cli("update", g, *more)
    assert code == 1 and "error: no sets with these ids in the gallery: 'new thing'" in err
    assert "31 sets" in cli("update", g, *more, "--insert")[1]
    code, out, _ = cli("remove", g, "thing 0", "thing 1")
    assert code == 0 and out.startswith("removed 2 sets: 29 sets")
    assert "removed 0 sets" in cli("remove", g, "thing 0", "--missing-ok")[1]
    assert "index Flat" in cli("index", g)[1]
    assert "29 sets" in cli("compact", g)[1]
    assert cli("verify", g)[0] == 0
    found = json.loads(cli("info", g, "--json")[1])
    assert (found["sets"], found["segments"], found["removed"]) == (29, 1, 0)
    assert found["index"] == "Flat"
    code, out, _ = cli("export", g, tmp_path / "out.parquet")
    assert code == 0 and "29 sets" in out
    assert pq.read_table(tmp_path / "out.parquet").column("id").to_pylist()[-1] == "new thing"
    assert "index removed" in cli("index", g, "--drop")[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("remove", "GALLERY"), 2, "give ids, or --ids FILE"),
        (("remove", "GALLERY", "nobody"), 1, "no sets with these ids in the gallery: 'nobody'"),
        (("add", "GALLERY"), 2, "give one of --embeddings"),
        (("add", "GALLERY", "--images", "nowhere"), 1, "records no model"),
        (("export", "GALLERY", "out.csv"), 1, "expected .parquet or .npy"),
    ],
)
def test_wrong_care_is_refused(files, cli, words, code, message):
    status, _, err = cli(*(files / "g" if word == "GALLERY" else word for word in words))
    assert status == code and message in err
