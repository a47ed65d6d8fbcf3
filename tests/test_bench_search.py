"""The comparison of searches: its data, its yardstick, its gate, and a small run with processes."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import divse
from divse.search import Gallery


@pytest.fixture
def peers(load):
    """Make the scripts of the peers importable."""
    load("search_data")  # puts bench/peers on the path
    return load


@pytest.fixture
def data(load, tmp_path):
    return load("search_data").clustered(tmp_path, 300, 4, 32, 16)


def test_clustered_sets_are_seeded_and_kept(load, tmp_path, data):
    sets = np.array(data.sets)
    assert sets.shape == (300, 4, 32) and data.asked.shape == (16, 4, 32)
    assert np.allclose(np.linalg.norm(sets, axis=-1), 1, atol=1e-6)
    written = data.gallery.stat().st_mtime_ns
    again = load("search_data").clustered(tmp_path, 300, 4, 32, 16)
    assert again.gallery.stat().st_mtime_ns == written
    elsewhere = load("search_data").clustered(tmp_path / "other", 300, 4, 32, 16)
    assert np.array_equal(elsewhere.sets, sets) and np.array_equal(elsewhere.asked, data.asked)


def test_every_second_query_is_a_perturbed_member(data):
    best = np.einsum("bkd,nkd->bnk", data.asked, data.sets).min(2).max(1)
    assert best[::2].min() > 0.866  # noise half as long can turn a vector by 30 degrees
    assert best[1::2].max() < 0.866


def test_variance_falls_as_in_trained_sets(load):
    spread = np.arange(1, 65, dtype=np.float32) ** -0.5
    vectors = load("search_data").drawn(np.random.default_rng(0), (5000,), spread)
    variances = vectors.var(axis=0)
    slope = np.polyfit(np.log(np.arange(2, 65)), np.log(variances[1:]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "maxsim"])
def test_numpy_equals_the_reference(peers, data, similarity):
    plain = peers("plain")
    wide = divse.score(
        torch.from_numpy(data.asked).double(),
        torch.from_numpy(np.array(data.sets)).double(),
        similarity,
    ).numpy()
    assert np.abs(plain.all_scores(similarity, data.asked, data.sets) - wide).max() < 1e-5
    order = np.argsort(-wide, axis=1)
    assert np.allclose(data.tenth(similarity), np.take_along_axis(wide, order, 1)[:, 9])
    assert data.recall(similarity, order[:, :10]) == 1.0
    assert data.recall(similarity, np.concatenate([order[:, :5], order[:, 20:25]], 1)) == 0.5
    assert data.recall(similarity, np.repeat(order[:, :1], 10, axis=1)) == pytest.approx(0.1)
    assert data.recall(similarity, np.full((16, 10), -1)) == 0.0


def test_equal_sets_are_equally_right(load, tmp_path):
    module = load("search_data")
    data = module.clustered(tmp_path, 20, 2, 8, 4)
    sets = np.array(data.sets)
    sets[10:] = sets[:10]
    np.save(data.gallery, np.concatenate([sets, sets]))  # every set is there four times
    fresh = module.Data("x", data.folder)
    places = np.argsort(-divse_scores(fresh), axis=1, kind="stable")
    assert fresh.recall("smooth_chamfer", places[:, :10]) == 1.0
    assert fresh.recall("smooth_chamfer", places[:, 2:12]) == 1.0  # ties of the tenth, not worse


def divse_scores(data):
    wide = (torch.from_numpy(np.array(x)).double() for x in (data.asked, data.sets))
    return divse.score(*wide).numpy()


def test_a_runs_embeddings_are_enlarged_by_noise(load, tmp_path, model):
    run = shutil.copytree(model, tmp_path / "scenes")
    some = load("search_data").clustered(tmp_path, 30, 2, 16, 8)
    captions = ["red star | blue circle"] * 15 + ["blue star"] * 15
    Gallery.create(run / "gallery", np.array(some.sets), columns={"caption": captions})
    small, large = (load("search_data").of_run(tmp_path, run, n, 6) for n in (20, 70))
    assert (small.name, large.name) == ("scenes", "scenes+noise")
    assert small.sets.shape[0] == 20 and len(large.sets) == 70 and len(large.asked) == 6
    assert np.allclose(large.sets[:30], some.sets, atol=1e-3)  # stored as float16
    assert np.allclose(np.linalg.norm(large.sets, axis=-1), 1, atol=1e-6)
    cosines = np.einsum("nkd,mkd->nmk", large.sets[30:], large.sets[:30]).min(2).max(1)
    assert (cosines > 0.865).all() and (cosines < 0.9999).all()


def test_candidates_are_reranked_once_each(peers, data):
    plain = peers("plain")
    found = np.array([[0, 5, -1], [9, 8, 7], [40, 41, -1], [44, 47, 3]])
    proposed = plain.owners(found, 4, 2)  # two queries of two elements
    assert [list(row) for row in proposed] == [[0, 1, 2], [0, 10, 11]]
    scores, ids = plain.rerank(data.asked[:2], data.sets, proposed, 4)
    assert sorted(ids[0]) == [-1, 0, 1, 2] and ids[0, 3] == -1 and np.isneginf(scores[0, 3])
    assert (np.diff(scores[:, :3], axis=1) <= 0).all()


def test_the_gate_sees_wrong_answers(load, data):
    judge = load("search_cell").judge
    intro = {"similarity": "smooth_chamfer", "stored": "float32", "exact": True}
    ids = np.argsort(-divse_scores(data), axis=1)[:, :10]
    scores = data.scores("smooth_chamfer", ids).astype(np.float32)
    assert judge(data, intro, scores, ids, 1.0).green
    assert not judge(data, intro, scores + np.float32(1e-4), ids, 1.0).green
    assert not judge(data, intro, scores[:, ::-1], ids[:, ::-1], 1.0).green
    assert not judge(data, intro, scores, ids, 0.98).green  # not exact
    assert judge(data, intro | {"exact": False}, scores, ids, 0.98).green
    assert not judge(data, intro, scores, np.repeat(ids[:, :1], 10, axis=1), 1.0).green
    assert judge(data, intro | {"stored": None}, scores * 2, ids, 0.9) is None


def test_a_peer_is_stopped_and_reported(load, tmp_path):
    peers = load("search_peers")
    spec = peers.PeerSpec("x", "exact_numpy", venv="nowhere")
    with pytest.raises(peers.PeerError, match=r"install\.sh"):
        spec.python(tmp_path)
    (tmp_path / "nowhere.failed").write_text("ERROR: no such package\n")
    with pytest.raises(peers.PeerError, match="no such package"):
        spec.python(tmp_path)
    words = {"gallery": "missing.npy", "folder": str(tmp_path)}
    log = tmp_path / "log.txt"
    with peers.PeerProcess(spec, Path(sys.executable), 1, log) as process:
        with pytest.raises(peers.PeerError, match=r"open: FileNotFoundError: .*missing\.npy"):
            process.ask(20, do="open", **words)
        process._process.send_signal(signal.SIGSTOP)
        with pytest.raises(peers.PeerError, match=f"open: {peers.OUT_OF_TIME}"):
            process.ask(0.1, do="open", **words)
    broken = peers.PeerSpec("x", "exact_numpy", {"unknown": 1})
    with (
        peers.PeerProcess(broken, Path(sys.executable), 1, log) as process,
        pytest.raises(peers.PeerError, match="status 1: TypeError: .*unknown"),
    ):
        process.ask(20, do="open", **words)


def test_install_leaves_the_reason_of_a_failure(load, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$4" in *usearch) ;; *) echo "ERROR: no $4"; exit 1;; esac\n'
    )
    python.chmod(0o755)
    ready = tmp_path / "venvs" / "lancedb"  # this one is there already
    (ready / "bin").mkdir(parents=True)
    (ready / "bin" / "python").symlink_to(sys.executable)
    (ready / ".ready").touch()
    script = Path(load("search_peers").SCRIPTS) / "install.sh"
    words = [script, tmp_path / "venvs"]
    subprocess.run(words, env=os.environ | {"PYTHON": str(python)}, check=True)
    for spec in load("search_peers").PEERS:
        if spec.venv in ("qdrant", "fast-plaid"):
            with pytest.raises(load("search_peers").PeerError, match=f"ERROR: no .*{spec.venv}"):
                spec.python(tmp_path / "venvs")
        elif spec.venv == "lancedb":
            assert spec.python(tmp_path / "venvs") == ready / "bin" / "python"


def test_a_small_run_is_gated_kept_and_plotted(run, tmp_path, monkeypatch, load):
    pytest.importorskip("faiss")
    words = ["--sizes", "150", "--shapes", "4x32", "--queries", "8", "--seconds", "0.05"]
    words += ["--threads", "1", "--work", tmp_path / "work", "--out", tmp_path / "out", "--json"]
    words += ["--peers", "numpy", "divse exact fp32", "SQ8", "lancedb"]
    status, printed = run("bench_search", *words)
    assert status == 0
    rows = {row["peer"]: row for row in json.loads(printed)["rows"]}
    assert rows["lancedb"]["note"].startswith("not installed")
    judged = [row for name, row in rows.items() if name != "lancedb"]
    assert {"numpy exact", "divse exact fp32", "faiss SQ8 + re-rank"} <= set(rows)
    assert "divse certified" not in rows
    for row in judged:
        assert row["gate"] == "green" and row["ms"] > 0 and row["x numpy"] > 0, row
        assert row["reached"] == "yes" and row["recall@10"] >= 0.99
    assert rows["numpy MaxSim"]["SC recall"] < 1
    assert rows["divse exact fp32"]["RSS MB"] > 0
    assert "divse exact fp32</text>" in (tmp_path / "out" / "search_growth.svg").read_text()
    monkeypatch.setattr(load("bench_search").Cell, "measure", lambda *_: pytest.fail("again"))
    again = json.loads(run("bench_search", *words)[1])
    assert [row.get("ms") for row in again["rows"]] == [row.get("ms") for row in rows.values()]


def row(peer, n, times, similarity="smooth_chamfer", reached="yes"):
    return {
        **{"data": "clustered", "K": 4, "D": 256, "N": n, "peer": peer, "ms": 10.0},
        **{"similarity": similarity, "x numpy": times, "reached": reached},
        **{"RSS MB": 1, "disk MB": 2},
    }


def test_goals_compare_what_reaches_the_recall(load):
    rows = [
        row("divse certified", 1_000_000, 6.0),
        row("divse prefilter", 1_000_000, 20.0),
        row("faiss SQ8 + re-rank", 1_000_000, 40.0, reached="no"),
        row("usearch + re-rank", 1_000_000, 10.0),
        row("divse certified MaxSim", 1000, 2.0, "maxsim"),
        row("lancedb", 1000, 4.0, "maxsim"),
    ]
    first, second, third, fourth = load("bench_search").goals(rows)
    assert first.startswith("reached") and "divse prefilter is 2.00 x as fast as usearch" in first
    assert second.startswith("MISSED") and "0.50 x as fast as lancedb" in second
    assert third.startswith("reached: divse certified") and "1 MB resident" in third
    assert fourth.startswith("MISSED: divse prefilter") and "goal 30" in fourth


def test_a_peer_that_takes_too_long_is_not_tried_on_more(load):
    too_slow = load("bench_search").too_slow
    small = {"data": "clustered", "K": 4, "D": 256, "N": 1000, "peer": "lancedb"}
    large = small | {"N": 5000}
    out = small | {"note": "build: not within 2.0 minutes"}
    assert too_slow([out], large, 120) == "build: not within 2.0 minutes with 1,000 sets"
    assert too_slow([out], large | {"peer": "numpy exact"}, 120) is None
    assert too_slow([small | {"note": "not installed"}], large, 120) is None
    assert "as it took 40 s with 1,000 sets" in too_slow([small | {"build s": 40}], large, 120)
    assert too_slow([small | {"build s": 30}], large, 120) is None


def test_a_ladder_is_climbed_no_further_than_it_pays(load):
    module, tried = load("search_cell"), []
    cell = module.Cell.__new__(module.Cell)
    cell.args = argparse.Namespace(limit=80, recall=0.99)
    cell.intro = {"ladders": [[{"a": n} for n in range(8)], [{"b": n} for n in range(8)]]}

    def attempt(process, setting):
        tried.append(setting)
        ((name, effort),) = setting.items()
        slow, enough = (1, effort >= 5) if name == "a" else (9, effort >= 6)
        found = 1.0 if enough else 0.5 + effort / 100
        return {"setting": setting, "recall": found, "single": slow * (1 + effort)}

    cell.attempt = attempt
    assert cell.sweep(None)["setting"] == {"a": 5}
    assert tried == [{"a": 4}, {"a": 6}, {"a": 5}, {"b": 4}]
    tried.clear()
    cell.args.recall, cell.intro = 2.0, {"ladders": [[{"a": n} for n in range(8)]]}
    assert cell.sweep(None)["setting"] == {"a": 6}  # none reaches it: the best there is,
    assert tried == [{"a": 4}, {"a": 6}, {"a": 7}]  # and from 6 to 7 nothing is gained


def test_names_of_lines_do_not_overlap(load):
    assert load("growth").spread([10, 11, 40, 41], 12, 100) == [10, 22, 40, 52]
    assert load("growth").spread([10, 90, 99], 12, 100) == [10, 88, 100]


def test_plot_shows_growth_of_what_reaches_the_recall(load, tmp_path, monkeypatch):
    names = ("divse certified", "usearch + re-rank")
    rows = [row(name, n, 2.0) for name in names for n in (1000, 10_000)]
    rows += [row("lancedb", 1000, 2.0, "maxsim"), row("qdrant", 1000, 9.0, reached="no")]
    (tmp_path / "x.json").write_text(json.dumps({"bench": "bench_search", "rows": rows}))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path / "x.json"), "--out", str(tmp_path)])
    assert load("plot").main() == 0
    drawn = ElementTree.fromstring((tmp_path / "search_growth.svg").read_text())
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {*names, "lancedb", "10,000"} <= set(texts) and "qdrant" not in texts
    assert "clustered, K=4 D=256, maxsim" in texts
    lines = list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 3
    assert load("growth").write([], tmp_path / "none") == []
