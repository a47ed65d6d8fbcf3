"""`divse-search tune` and `eval`: what they say is what a search then does."""

import json

import numpy as np
import pytest
from gallery_cases import ragged, vectors

from divse.search.gallery import Gallery


@pytest.fixture
def indexed(tmp_path):
    columns = {"year": [1990 + row % 30 for row in range(300)]}
    return Gallery.create(tmp_path / "g", vectors(300, 3, 16), columns=columns).build_index().path


def test_exact_plans_find_everything(indexed, cli):
    for plan in ("exact", "certified"):
        code, out, err = cli("eval", indexed, "--plan", plan, "--sample", 9, "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert (found["recall"], found["lowest_recall"], found["certified"]) == (1, 1, 1)
        assert (found["queries"], found["sampled"], found["topk"]) == (18, True, 10)
        assert found["recalls"] == {"moved": 1, "mixed": 1}
        assert found["plan"] == plan and found["milliseconds"] > 0


def test_recall_of_a_shallow_prefilter_is_what_its_answers_lack(indexed, tmp_path, cli):
    np.save(tmp_path / "q.npy", vectors(12, 3, 16, seed=4))
    given = (indexed, "--embeddings", tmp_path / "q.npy", "--json")
    shallow = ("--plan", "prefilter", "--depth", 1)
    found = json.loads(cli("eval", *given, *shallow, "--topk", 5)[1])
    hits = {}
    for plan in (shallow, ("--plan", "exact")):
        answers = map(json.loads, cli("query", *given, *plan, "--topk", 5)[1].splitlines())
        hits[plan] = [{hit["id"] for hit in answer["hits"]} for answer in answers]
    right = [len(a & b) / 5 for a, b in zip(*hits.values(), strict=True)]
    assert found["recall"] == pytest.approx(np.mean(right)) and found["recall"] < 1
    assert found["lowest_recall"] == min(right) and found["sampled"] is False
    assert found["recalls"] == {"given": pytest.approx(found["recall"])}


def test_filters_and_ragged_sets(indexed, tmp_path, cli):
    found = json.loads(cli("eval", indexed, "--where", "year = 1990", "--topk", 20, "--json")[1])
    assert found["topk"] == 10 and found["recall"] == 1
    code, out, err = cli("eval", indexed, "--where", "year < 0")
    assert (code, out) == (1, "") and "no set passes the filter" in err
    Gallery.create(tmp_path / "r", ragged(20))
    code, out, err = cli("eval", tmp_path / "r", "--topk", 50)
    assert code == 0 and "recall" in out, err


def test_tune_is_remembered(indexed, tmp_path, cli):
    np.save(tmp_path / "q.npy", vectors(12, 3, 16, seed=4))
    code, out, err = cli("tune", indexed, "--embeddings", tmp_path / "q.npy", "--json")
    assert (code, err) == (0, "")
    tuned = json.loads(out)
    assert tuned["best"]["recall"] >= 0.99 and tuned["queries"] == 12 and not tuned["sampled"]
    query = ("query", indexed, "--embeddings", tmp_path / "q.npy", "--explain", "--json")
    search = json.loads(cli(*query)[1].splitlines()[0])["search"]
    assert search["plan"] == tuned["best"]["plan"] and "measured" in search["why"]
    assert "recall@10" in cli("tune", indexed, "--recall", 0.5)[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("eval --plan exact --depth 3", 2, "--depth and --probe are of --plan prefilter"),
        ("eval --embeddings q.npy --text a", 2, "give one of"),
        ("eval --embeddings none.npy", 1, "there are no queries"),
        ("eval --embeddings wide.npy", 1, "queries have D=8, the gallery has D=16"),
        ("eval --where 'colour = 1'", 1, "unknown column"),
        ("tune --recall 1.5", 2, "--recall"),
        ("tune --recall 0", 1, "recall: got 0"),
        ("tune --embeddings wide.npy", 1, "queries have D=8, the gallery has D=16"),
    ],
)
def test_bad_input(indexed, tmp_path, cli, monkeypatch, options, code, message):
    import shlex

    monkeypatch.chdir(tmp_path)
    np.save("q.npy", vectors(2, 3, 16))
    np.save("none.npy", vectors(0, 3, 16))
    np.save("wide.npy", vectors(2, 3, 8))
    command, *rest = shlex.split(options)
    status, out, err = cli(command, indexed, *rest)
    assert (status, out) == (code, "") and message in err


@pytest.mark.parametrize("command", ["eval", "query"])
def test_probe_belongs_to_indexes_with_clusters(tmp_path, cli, command):
    sets = vectors(20, 3, 16)
    np.save(tmp_path / "q.npy", sets[:2])
    Gallery.create(tmp_path / "g", sets).build_index("Sketch8")
    words = (tmp_path / "g", "--embeddings", tmp_path / "q.npy", "--probe", 4)
    status, out, err = cli(command, *words)
    assert (status, out) == (1, "") and "probe: got 4, but the gallery's index is Sketch8" in err


@pytest.mark.parametrize("command", ["eval", "tune"])
def test_an_empty_gallery_is_refused(tmp_path, cli, command):
    Gallery.create(tmp_path / "g", vectors(1, 2, 8)).remove([0])
    status, out, err = cli(command, tmp_path / "g")
    assert (status, out) == (1, "") and "is empty: every set was removed" in err
