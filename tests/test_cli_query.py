"""`divse-search query`: answers as tables and JSON, options of a search, explanations."""

import json

import numpy as np
import pytest
from cli_cases import json_lines
from gallery_cases import ragged, vectors

from divse.search.gallery import Gallery


def test_table_and_json_answers(files, cli):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--topk", 3)
    code, table, err = cli(*query)
    assert (code, err) == (0, "")
    assert "query 0  (exact)" in table and "thing 7" in table and "1997" in table
    answers = json_lines(cli(*query, "--json", "--plan", "prefilter", "--depth", 20)[1])
    assert len(answers) == 2 and answers[1]["query"] == {"number": 1}
    assert answers[0]["plan"] == "prefilter"
    first = answers[0]["hits"][0]
    assert first.pop("score") == pytest.approx(1, abs=0.1)
    assert first == {"rank": 1, "id": "thing 7", "year": 1997}
    exact = json_lines(cli(*query, "--json", "--plan", "exact")[1])
    assert [a["hits"] for a in exact] == [
        [{**hit, "score": pytest.approx(hit["score"], abs=2e-6)} for hit in a["hits"]]
        for a in json_lines(cli(*query, "--json", "--impl", "reference")[1])
    ]
    assert exact[0]["certified"] is True


def test_many_segments_and_many_queries(files, tmp_path, cli, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", vectors(10, 3, 8, seed=1))
    for seed in range(2, 5):
        gallery = gallery.add(vectors(10, 3, 8, seed=seed))
    np.save(tmp_path / "q.npy", np.concatenate([vectors(10, 3, 8, seed=s) for s in range(1, 5)]))
    monkeypatch.setattr("divse.cli.answering.BATCH", 7)
    for plan in ((), ("--plan", "prefilter", "--depth", 5)):
        query = ("query", tmp_path / "g", "--embeddings", tmp_path / "q.npy", "--topk", 1, *plan)
        answers = json_lines(cli(*query, "--json")[1])
        assert [answer["hits"][0]["id"] for answer in answers] == list(range(40))
        assert [answer["query"]["number"] for answer in answers] == list(range(40))


def test_similarity_and_alpha_of_a_query(files, cli):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--json")
    scores = {}
    for options in ((), ("--similarity", "chamfer"), ("--alpha", "900"), ("--alpha", "4")):
        code, out, err = cli(*query, *options)
        assert code == 0, err
        scores[options] = [hit["score"] for hit in json_lines(out)[0]["hits"]]
    sharp, chamfer = scores["--alpha", "900"], scores["--similarity", "chamfer"]
    np.testing.assert_allclose(sharp, chamfer, atol=2e-3)
    assert scores["--alpha", "4"] != scores[()] != chamfer


def test_queries_of_a_parquet_file_keep_their_ids(files, cli):
    query = ("query", files / "g", "--embeddings", files / "sets.parquet", "--topk", 1)
    answers = json_lines(cli(*query, "--json")[1])
    assert [a["query"]["id"] for a in answers] == [a["hits"][0]["id"] for a in answers]


def test_topk_beyond_the_gallery_gives_all_of_it(files, cli, monkeypatch):
    monkeypatch.chdir(files)
    arguments = ["--embeddings", "queries.npy", "--topk", "31", "--json"]
    code, out, _ = cli("query", "g", *arguments)
    assert code == 0
    assert [len(json.loads(line)["hits"]) for line in out.splitlines()] == [30] * len(
        np.load("queries.npy")
    )


@pytest.mark.parametrize("plan", ["exact", "certified", "prefilter", "auto"])
def test_filters_hold_in_every_plan(files, tmp_path, cli, plan):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--plan", plan, "--json")
    code, out, err = cli(*query, "--where", "year >= 2016")
    assert code == 0, err
    for found in json_lines(out):
        assert {hit["year"] for hit in found["hits"]} == {2016, 2017, 2018, 2019}
    (tmp_path / "allowed.txt").write_text("thing 28\nthing 3\n")
    allowed = ("--allowed-ids", tmp_path / "allowed.txt")
    hits = json_lines(cli(*query, *allowed)[1])[0]["hits"]
    assert {hit["id"] for hit in hits} == {"thing 3", "thing 28"}
    both = json_lines(cli(*query, *allowed, "--where", "year >= 2016")[1])[0]["hits"]
    assert [hit["id"] for hit in both] == ["thing 28"]


def test_nothing_passes_the_filter(files, cli):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--where", "year < 0")
    code, out, err = cli(*query)
    assert code == 0 and out.count("no set passes the filter") == 2, err
    assert [answer["hits"] for answer in json_lines(cli(*query, "--json")[1])] == [[], []]
    code, out, err = cli(*query, "--explain", "--json")
    assert code == 0 and json_lines(out)[0]["search"]["survivors"] == 0, err


def test_whole_numbers_as_allowed_ids(files, tmp_path, cli):
    Gallery.create(tmp_path / "g", vectors(9, 3, 8))
    (tmp_path / "ids.txt").write_text("4\n7\n")
    np.save(tmp_path / "ids.npy", np.array([4, 7]))
    for name in ("ids.txt", "ids.npy"):
        query = ("query", tmp_path / "g", "--embeddings", files / "queries.npy", "--json")
        code, out, err = cli(*query, "--allowed-ids", tmp_path / name)
        assert code == 0, err
        assert {hit["id"] for hit in json_lines(out)[0]["hits"]} == {4, 7}


def test_explanations(files, cli):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--topk", 2, "--explain")
    code, out, err = cli(*query, "--json")
    assert code == 0, err
    for found in json_lines(out):
        assert found["search"]["plan"] == found["plan"]
        for hit in found["hits"]:
            why = hit["explain"]
            cosines, weights = np.array(why["cosines"]), np.array(why["weights"])
            assert cosines.shape == (3, 3) and weights.sum() == pytest.approx(1, abs=1e-5)
            parts = (cosines * weights).sum() + why["remainder"]
            assert parts == pytest.approx(hit["score"], abs=1e-5)
            assert [match["query"] for match in why["matches"]] == [0, 1, 2]
    table = cli(*query)[1]
    assert "pairs that met" in table and "→" in table and "queries" in table


def test_explanations_of_ragged_sets_and_another_similarity(tmp_path, cli):
    Gallery.create(tmp_path / "g", ragged(12))
    np.save(tmp_path / "q.npy", vectors(2, 2, 8))
    query = ("query", tmp_path / "g", "--embeddings", tmp_path / "q.npy", "--explain", "--json")
    sizes = Gallery.open(tmp_path / "g").set_sizes()
    for found in json_lines(cli(*query, "--similarity", "mil")[1]):
        for hit in found["hits"]:
            cosines = np.array(hit["explain"]["cosines"])
            assert cosines.shape == (2, sizes[hit["id"]])
            assert hit["score"] == pytest.approx(cosines.max(), abs=2e-6)


def test_queries_named_by_a_file_of_ids(files, tmp_path, cli):
    (tmp_path / "names.json").write_text('["a", "b"]')
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--json")
    answers = json_lines(cli(*query, "--ids", tmp_path / "names.json")[1])
    assert [found["query"] for found in answers] == [{"id": "a"}, {"id": "b"}]
    (tmp_path / "names.json").write_text('["a"]')
    code, out, err = cli(*query, "--ids", tmp_path / "names.json")
    assert (code, out) == (1, "") and "got 1 ids for 2 sets" in err


def test_columns_that_are_no_numbers_are_null_in_json(tmp_path, files, cli):
    Gallery.create(tmp_path / "g", vectors(3, 3, 8), columns={"price": [float("nan"), 1.5, None]})
    out = cli("query", tmp_path / "g", "--embeddings", files / "queries.npy", "--json")[1]
    assert "NaN" not in out
    prices = {hit["id"]: hit["price"] for hit in json_lines(out)[0]["hits"]}
    assert prices == {0: None, 1: 1.5, 2: None}


def test_a_query_that_builds_an_index_says_so(files, tmp_path, cli, monkeypatch):
    pytest.importorskip("faiss")
    for module in ("divse.search.prefilter", "divse.cli.answering"):
        monkeypatch.setattr(f"{module}.STORED_FROM", 90)
    Gallery.create(tmp_path / "g", vectors(30, 3, 8))
    query = ("query", tmp_path / "g", "--embeddings", files / "queries.npy", "--json")
    assert cli(*query)[2] == ""
    err = cli(*query, "--plan", "prefilter")[2]
    assert "has no index: it is built and stored there first" in err
    assert f"divse-search index {tmp_path / 'g'}" in err and err.count("\n") == 1
    assert Gallery.open(tmp_path / "g").manifest.index is not None
    assert cli(*query, "--plan", "prefilter")[2] == ""
