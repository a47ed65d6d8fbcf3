"""divse-eval: files of embeddings and matrices; what it prints and writes; exit codes."""

import json
from io import StringIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eval_cases import corpus, figures, mean, recall, sets, write_cxc, write_instances, write_pairs
from safetensors.numpy import save_file

from divse.cli.eval_output import Page, Resampling, Results, show
from divse.evaluation import evaluate, log_variance
from divse.similarity import score

DATA = corpus()
OWNER = DATA.image_of_caption
RATED = ("--scores", "{f}/scores.npy", "--owners", "{f}/owners.npy", "--relevance")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sets of ten pictures and 52 captions, their scores, ids and ground truth."""
    folder = tmp_path_factory.mktemp("eval")
    images, texts = sets(10, 0), sets(52, 1)
    for name, some in (("images", images), ("texts", texts)):
        values = 3 * some.values.numpy()  # norms are taken off
        np.save(folder / f"{name}.npy", values)
        np.savez(folder / f"{name}.npz", embeddings=values)
        save_file({"embeddings": values}, folder / f"{name}.safetensors")
        pq.write_table(pa.table({"embeddings": values.tolist()}), folder / f"{name}.parquet")
    np.save(folder / "scores.npy", score(images, texts, impl="reference").numpy())
    np.save(folder / "owners.npy", OWNER)
    np.save(folder / "image_ids.npy", DATA.image_ids)
    (folder / "caption_ids.json").write_text(json.dumps(DATA.caption_ids.tolist()))
    write_cxc(folder / "cxc", DATA)
    write_pairs(folder / "eccv", DATA, "eccv")
    write_instances(folder / "instances.json", DATA)
    return folder


def ids(files):
    return (
        *("--owners", files / "owners.npy", "--image-ids", files / "image_ids.npy"),
        *("--caption-ids", files / "caption_ids.json"),
    )


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet"])
def test_embeddings_of_every_kind_score_as_their_matrix(call, files, suffix):
    owners = ("--owners", files / "owners.npy", "--json")
    pair = ("--images-embeddings", files / f"images.{suffix}")
    pair += ("--texts-embeddings", files / f"texts.{suffix}")
    code, out, err = call(*pair, *owners, "--impl", "reference", "--block", 7)
    assert (code, err) == (0, "")
    got = figures(out)
    matrix = np.load(files / "scores.npy")
    expected = evaluate(matrix, OWNER)
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    model = json.loads(out)["models"][0]
    assert model["log_var"]["images"] == pytest.approx(log_variance(sets(10, 0)))
    code, out, _ = call("--scores", files / "scores.npy", *owners)
    assert figures(out) == pytest.approx(got)
    assert json.loads(out)["models"][0]["log_var"] == {}


def test_packed_and_ragged_sets(call, tmp_path):
    """Elements one after another with lengths, in .npy with its lengths, and inside .npz."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 4, 6)
    elements = rng.standard_normal((lengths.sum(), 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", elements)
    np.save(tmp_path / "lengths.npy", lengths)
    np.savez(tmp_path / "images.npz", embeddings=elements, lengths=lengths)
    np.save(tmp_path / "texts.npy", rng.standard_normal((30, 8)).astype(np.float32))
    texts = ("--texts-embeddings", tmp_path / "texts.npy", "--json", "--impl", "reference")
    packed = ("--images-embeddings", tmp_path / "images.npy")
    _, out, _ = call(*packed, "--images-lengths", tmp_path / "lengths.npy", *texts)
    code, other, _ = call("--images-embeddings", tmp_path / "images.npz", *texts)
    assert code == 0 and figures(out) == figures(other)
    np.savez(tmp_path / "images.npz", embeddings=elements, lengths=lengths + 1)
    code, _, err = call("--images-embeddings", tmp_path / "images.npz", *texts)
    assert code == 1 and "do not fit its lengths" in err
    (tmp_path / "images.npy").rename(tmp_path / "images.npz")
    code, _, err = call("--images-embeddings", tmp_path / "images.npz", *texts)
    assert code == 1 and "images.npz is no .npz archive" in err


def test_every_protocol_at_once(call, files):
    pair = ("--images-embeddings", files / "images.npy", "--texts-embeddings", files / "texts.npy")
    truth = ("--cxc", files / "cxc", "--eccv", files / "eccv", "--pmrp", files / "instances.json")
    names = [w for n in ("coco", "f30k", "cxc", "eccv", "pmrp", "pmrp-1k") for w in ("-p", n)]
    code, out, err = call(*pair, *ids(files), *truth, *names, "--json", "--impl", "reference")
    assert (code, err) == (0, "")
    found = json.loads(out)
    protocols = found["models"][0]["protocols"]
    assert list(protocols) == ["coco-1k", "coco-5k", "f30k", "cxc", "eccv", "pmrp", "pmrp-1k"]
    assert protocols["coco-5k"]["queries"] == {"i2t": 10, "t2i": 50}
    assert set(protocols["cxc"]["queries"]) == {"i2t", "t2i", "i2i", "t2t"}
    assert {"value", "std"} == set(protocols["cxc"]["figures"]["sits"])
    assert found["data"] == {"name": "the data", "split": "test", "pictures": 10, "captions": 52}
    code, out, _ = call("--scores", files / "scores.npy", *ids(files), *truth, *names, "--json")
    short = json.loads(out)
    assert short["notes"] == [
        "CxC (10): only scores between pictures and captions are there, so "
        "i2i, t2t is left out; give embeddings"
    ]
    assert set(short["models"][0]["protocols"]["cxc"]["queries"]) == {"i2t", "t2i"}
    assert figures(out, protocol="eccv") == pytest.approx(
        {name: f["value"] for name, f in protocols["eccv"]["figures"].items()}
    )


def test_an_ensemble_and_comparisons(call, files, tmp_path):
    rng = np.random.default_rng(0)
    matrices = [rng.random((10, 50)).astype(np.float32) for _ in range(3)]
    words = []
    for number, matrix in enumerate(matrices):
        np.save(tmp_path / f"m{number}.npy", matrix)
        words += ["--scores", tmp_path / f"m{number}.npy"]
    written = [tmp_path / f"out.{suffix}" for suffix in ("json", "md", "txt")]
    outs = [word for file in written for word in ("--out", file)]
    code, out, _ = call(*words, "--ensemble", "--compare", "--json", "--resamples", 50, *outs)
    found = json.loads(out)
    assert code == 0
    assert [m["name"] for m in found["models"]] == ["m0", "m1", "m2", "ensemble of 3"]
    own = np.repeat(np.arange(10), 5)
    mean_scores = np.mean(matrices, axis=0)
    expected = mean(
        recall(mean_scores[i], list(range(50)), set(np.flatnonzero(i == own)), 1) for i in range(10)
    )
    assert figures(out, 3)["i2t_r1"] == pytest.approx(expected)
    change = found["comparisons"][1]["protocols"]["own"]["rsum"]
    assert (found["comparisons"][1]["a"], found["comparisons"][1]["b"]) == ("m0", "m2")
    assert change["difference"] == pytest.approx(figures(out)["rsum"] - figures(out, 2)["rsum"])
    assert change["low"] <= change["difference"] <= change["high"] and 0 < change["p"] <= 1
    assert json.loads(written[0].read_text()) == found
    assert written[1].read_text().count("| ensemble of 3 |") == 1
    assert "m0 minus m2" in written[2].read_text()


def test_people_read_tables_in_the_papers_layout(call, files):
    words = ("--scores", files / "scores.npy", "--owners", files / "owners.npy", "-p", "f30k")
    code, out, _ = call(*words)
    lines = out.splitlines()
    assert code == 0 and lines[0] == "Flickr30K 10"
    assert lines[1].split("  ")[-1].strip() == "RSUM" and "i2t R@1" in lines[1]
    code, out, _ = call(*words, "--markdown", "--intervals", "--resamples", 20)
    header, rule, row = out.splitlines()[2:5]
    assert header == ("|  | i2t R@1 | i2t R@5 | i2t R@10 | t2i R@1 | t2i R@5 | t2i R@10 | RSUM |")
    assert rule == "| --- |" + " ---: |" * 7
    assert row.startswith("| scores | ") and row.count("[") == 7
    _, out, _ = call(*words, "--json", "--resamples", 0)
    assert set(json.loads(out)["models"][0]["protocols"]["f30k"]["figures"]["rsum"]) == {"value"}


def test_narrow_terminals_never_cut_a_number(files, monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    page = Page("title", ["", *(f"i2t R@{k}" for k in range(9))], [["model", *["100.0"] * 9]])
    for stream, width, lines in ((StringIO(), "60", 3), (Terminal(), "60", 11)):
        monkeypatch.setenv("COLUMNS", width)
        show([page], [], stream)
        said = stream.getvalue()
        assert said.count("100.0") == 9 and said.count("\n") == lines + 1


def test_models_of_one_name_are_told_apart():
    results = Results(Resampling(0))
    for name in ("run", "run", "other", "run"):
        results.add(name, [], {})
    assert results.names == ["run", "run (2)", "other", "run (3)"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "Usage"),
        (("-p", "coco"), 2, "give a run"),
        (("--scores", "{f}/scores.npy", "-p", "imagenet"), 2, "got imagenet"),
        (("--images-embeddings", "{f}/images.npy"), 2, "come in pairs"),
        (("--scores", "{f}/scores.npy", "--ensemble"), 2, "two models"),
        (("--scores", "{f}/scores.npy", "--compare"), 2, "two models"),
        (("--scores", "{f}/scores.npy", "--json", "--markdown"), 2, "not both"),
        (("--scores", "{f}/scores.npy", "--out", "table.csv"), 2, "*.json, *.md, *.txt"),
        (("--scores", "{f}/scores.npy", "--block", "0"), 2, "at least 1"),
        (("--scores", "{f}/scores.npy", "--out", "{f}/nowhere/a.md"), 2, "a folder that is there"),
        (("--scores", "{f}/scores.npy", "--owners", "{f}/scores.npy"), 1, "whole numbers"),
        (("--scores", "{f}/scores.npy", "--confidence", "1"), 2, "between 0 and 1"),
        (("--scores", "{f}/scores.npy"), 1, "not five each"),
        (("--scores", "{f}/absent.npy"), 1, "no such file"),
        ((*RATED, "{f}/absent.npy"), 1, "absent.npy: there is no such file"),
        ((*RATED, "{f}/cxc/sits_test.csv"), 1, "sits_test.csv is no .npy file"),
        ((*RATED, "{f}/images.npz"), 1, "archive"),
        ((*RATED, "{f}/scores.npy"), 1, "relevance must be bool (10, 52)"),
        (("--scores", "{f}/scores.npy", "--split", "tset"), 2, "got 'tset', expected one of train"),
        (("--scores", "{f}/cxc/sits_test.csv"), 1, "no .npy file"),
        (("--scores", "{f}/images.npz"), 1, "archive"),
        (("{f}/nowhere",), 1, "no such run"),
        (("--scores", "{f}/scores.npy", "--owners", "{f}/image_ids.npy"), 1, "have an owner"),
        (
            ("--scores", "{f}/scores.npy", "--owners", "{f}/owners.npy", "-p", "eccv"),
            1,
            "--karpathy",
        ),
        (
            ("--scores", "{f}/scores.npy", "--owners", "{f}/owners.npy", "-p", "pmrp"),
            1,
            "--pmrp instances_val2014.json",
        ),
    ],
)
def test_what_cannot_be_measured_ends_with_a_sentence(call, files, words, code, message):
    got, out, err = call(*(word.format(f=files) for word in words))
    assert got == code
    assert message in err or (not words and message in out)
    assert "Traceback" not in err


def test_ctrl_c_ends_with_130(call, files, monkeypatch):
    def stop(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("divse.cli.eval_run.measure_and_show", stop)
    code, _, err = call("--scores", files / "scores.npy")
    assert code == 130 and "interrupted" in err and "Traceback" not in err
