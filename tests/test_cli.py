"""`divse-search` from build to answer: as a subprocess where that matters, in process elsewhere."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gallery_cases import ragged, vectors
from PIL import Image

from divse.cli import main
from divse.search.gallery import Gallery


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_as_a_subprocess(files):
    """Answers on stdout alone, errors on stderr alone, and exit codes that a shell sees."""

    def shell(*arguments):
        command = [sys.executable, "-m", "divse.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    options = ("--embeddings", files / "queries.npy", "--topk", 2, "--json")
    found = shell("query", files / "g", *options)
    assert (found.returncode, found.stderr) == (0, "")
    assert [answer["hits"][0]["id"] for answer in json_lines(found.stdout)] == [
        "thing 7",
        "thing 2",
    ]
    missing = shell("query", files / "no", *options)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.count("\n") == 1 and "no gallery at" in missing.stderr


def test_help_version_and_usage(cli):
    code, out, _ = cli("--help")
    assert code == 0 and "Examples" in out and "query" in out
    for command in ("build", "info", "verify", "query"):
        code, out, _ = cli(command, "--help")
        assert code == 0 and f"divse-search {command} g" in out
    assert cli("--version")[1].startswith("divse-search ")
    assert cli("frobnicate")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "first_id"),
    [
        (["sets.npy", "--ids", "ids.txt"], "thing 0"),
        (["sets.npy", "--ids", "ids.json"], "thing 0"),
        (["sets.npy", "--ids", "ids.npy", "--dtype", "float32"], 0),
        (["sets.safetensors"], 0),
        (["sets.parquet"], "thing 0"),
        (["packed.npy", "--lengths", "lengths.npy"], 0),
        (["ragged.parquet"], 0),
    ],
)
def test_build_from_every_kind_of_file(files, tmp_path, cli, monkeypatch, arguments, first_id):
    monkeypatch.chdir(files)
    code, out, err = cli("build", tmp_path / "g", "--embeddings", *arguments)
    assert (code, err) == (0, ""), err
    assert out.startswith("built") and "30 sets of" in out and "D=8" in out
    gallery = Gallery.open(tmp_path / "g")
    assert len(gallery) == 30 and gallery.ids[0] == first_id
    expected = vectors(30, 3, 8) if not gallery.ragged else ragged(30, 4, 8).values
    for row, size in enumerate(gallery.set_sizes()):
        stored = gallery.sets(np.array([row])).values[0, :size]
        np.testing.assert_allclose(stored, expected[row, :size], atol=1e-3)
    if "sets.parquet" in arguments:
        assert gallery.columns["year"][29].as_py() == 2019


def test_index_is_built_when_large_or_asked_for(files, tmp_path, cli, monkeypatch):
    def indexes(*options):
        build = ("build", tmp_path / "g", "--embeddings", files / "sets.npy", "--overwrite")
        code, _, err = cli(*build, *options)
        assert code == 0, err
        return len(list((tmp_path / "g").glob("index-*")))

    assert (indexes(), indexes("--index")) == (0, 1)
    monkeypatch.setattr("divse.cli.build.is_large", lambda gallery: True)
    assert (indexes("--no-index"), indexes()) == (0, 1)


def test_single_vectors_are_sets_of_one(tmp_path, cli):
    np.save(tmp_path / "v.npy", vectors(5, 8))
    assert cli("build", tmp_path / "g", "--embeddings", tmp_path / "v.npy")[0] == 0
    assert Gallery.open(tmp_path / "g").k == 1


def test_info_and_verify(files, cli):
    code, out, _ = cli("info", files / "g", "--json")
    assert code == 0 and json.loads(out)["sets"] == 30
    code, out, _ = cli("info", files / "g")
    assert code == 0 and "float16" in out and "year" in out
    assert cli("verify", files / "g")[1].startswith("whole: 30 sets")


def test_verify_names_the_damaged_file(files, tmp_path, cli):
    Gallery.create(tmp_path / "g", vectors(3, 2, 8))
    path = next((tmp_path / "g").glob("*/embeddings.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, out, err = cli("verify", tmp_path / "g")
    assert (code, out) == (1, "") and "embeddings.npy" in err and err.count("\n") == 1


def test_table_and_json_answers(files, cli):
    query = ("query", files / "g", "--embeddings", files / "queries.npy", "--topk", 3)
    code, table, err = cli(*query)
    assert (code, err) == (0, "")
    assert "query 0  (exact)" in table and "thing 7" in table and "1997" in table
    answers = json_lines(cli(*query, "--json", "--plan", "prefilter", "--depth", 20)[1])
    assert len(answers) == 2 and answers[1]["query"] == {"number": 1}
    assert answers[0]["plan"] == "prefilter" and answers[0]["certified"] is False
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
    monkeypatch.setattr("divse.cli.query.BATCH", 7)
    for plan in ((), ("--plan", "prefilter", "--depth", 5)):
        query = ("query", tmp_path / "g", "--embeddings", tmp_path / "q.npy", "--topk", 1, *plan)
        answers = json_lines(cli(*query, "--json")[1])
        assert [answer["hits"][0]["id"] for answer in answers] == list(range(40))
        assert [answer["query"]["number"] for answer in answers] == list(range(40))


def test_bars_follow_the_work(monkeypatch, capsys):
    from tqdm import tqdm

    from divse.cli.progress import SearchBars

    drawn = []
    monkeypatch.setattr(tqdm, "__init__", lambda self, **options: drawn.append(options["desc"]))
    monkeypatch.setattr(tqdm, "update", lambda self, step: drawn.append(step))
    monkeypatch.setattr(tqdm, "close", lambda self: drawn.append("closed"))
    monkeypatch.setattr(tqdm, "__del__", lambda self: None)
    bars = SearchBars()
    for what, step in (("index", 5), ("scan", 6), ("scan", 4), ("scan", 10)):
        bars(what, step, 10)
    bars.close()
    expected = ["index", 5, "closed", "scan", 6, 4, "closed", "scan", 10, "closed"]
    assert drawn == expected


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


@pytest.mark.parametrize(
    "arguments",
    [
        "build g",
        "build g --images pictures",
        "build g --embeddings sets.npy --model m",
        "build g --text a --embeddings sets.npy",
        "build g --embeddings sets.npy --texts ids.txt",
        "build g --embeddings sets.npy --dtype int8",
        "query g",
        "query g --text a --embeddings queries.npy",
        "query g --embeddings queries.npy --plan exact --depth 5",
        "query g - --text a",
        "query g --embeddings queries.npy --topk 0",
        "query g --embeddings queries.npy --similarity dot",
        "query g --embeddings queries.npy --impl cuda",
        "query g --text a --lengths lengths.npy",
        "query g --embeddings queries.npy --model m",
    ],
)
def test_wrong_usage_ends_with_2(files, cli, monkeypatch, arguments):
    monkeypatch.chdir(files)
    code, out, err = cli(*arguments.split())
    assert (code, out) == (2, "") and err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build g --embeddings sets.npy", "--overwrite replaces it"),
        ("build new --embeddings no.npy", "no.npy: there is no such file"),
        ("build new --embeddings ids.txt", "*.npy, *.safetensors, *.parquet"),
        (
            "build new --embeddings queries.npy --lengths lengths.npy",
            "expected one length for each set",
        ),
        ("build new --embeddings sets.npy --ids lengths.npy", "occurs twice"),
        ("build new --embeddings ids.npy", "holds shape (30,)"),
        ("build new --embeddings broken.npy", "broken.npy"),
        ("build new --embeddings broken.safetensors", "broken.safetensors is damaged"),
        ("build new --embeddings broken.parquet", "broken.parquet is damaged"),
        ("build new --embeddings pickled.npy", "no .npy file of plain numbers"),
        ("build new --model nowhere --texts ids.txt", "no such model folder"),
        ("query g --embeddings wide.npy", "queries have D=16, the gallery has D=8"),
        ("query g --embeddings zero.npy", "element 1 of set 0 is zero"),
        ("query g --embeddings queries.npy --alpha 0", "alpha: got 0"),
        ("query g --embeddings queries.npy --contact-sheet s.png", "no column path"),
        ("query g --text hello", "records no model"),
        ("info nowhere", "no gallery at nowhere"),
        ("verify .", "is not a gallery"),
    ],
)
def test_errors_are_one_line_and_end_with_1(files, cli, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    for name in ("broken.npy", "broken.safetensors", "broken.parquet"):
        (files / name).write_bytes(b"nothing of the kind")
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("wide.npy", vectors(2, 3, 16))
    np.save("zero.npy", vectors(2, 3, 8) * np.array([1, 0, 1])[None, :, None])
    code, out, err = cli(*arguments.split())
    assert (code, out) == (1, "")
    assert message in err and err.startswith("divse-search: error: ") and err.count("\n") == 1
    assert not (files / "new").exists()


def test_topk_beyond_the_gallery_gives_all_of_it(files, cli, monkeypatch):
    monkeypatch.chdir(files)
    arguments = ["--embeddings", "queries.npy", "--topk", "31", "--json"]
    code, out, _ = cli("query", "g", *arguments)
    assert code == 0
    assert [len(json.loads(line)["hits"]) for line in out.splitlines()] == [30] * len(
        np.load("queries.npy")
    )


def test_traceback_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "info", str(tmp_path / "nowhere")])


# --- with a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny untrained model in a folder: enough to drive pictures and texts through."""
    from divse.data.vocabulary import Vocabulary
    from divse.encoder import DivSE
    from divse.models import HeadConfig, ImageConfig, TextConfig, TwoTower, TwoTowerConfig

    torch.manual_seed(0)
    words = Vocabulary.build(["a red circle", "two blue stars"], 1, 8)
    config = TwoTowerConfig(
        ImageConfig(size=32, width=8),
        TextConfig(word_dim=8, hidden=8),
        HeadConfig(k=2, dim=16, blocks=1, heads=1, head_dim=8),
    )
    folder = tmp_path_factory.mktemp("model") / "run"
    trained = {"similarity": "smooth_chamfer", "alpha": 8.0}
    DivSE(TwoTower(config, len(words)).eval(), config, words, trained).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.png"):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_pictures_to_contact_sheet(model, pictures, tmp_path, cli):
    code, _, err = cli("build", tmp_path / "g", "--model", model, "--images", pictures)
    assert code == 0, err
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.ids.tolist() == ["a.png", "b.jpg", "more/c.png"]
    assert gallery.metadata["model"]["similarity"]["alpha"] == 8.0
    sheet = tmp_path / "found.png"
    texts = ("--text", "a red circle", "--text", "two blue stars")
    code, out, err = cli(
        "query", tmp_path / "g", *texts, "--topk", 2, "--contact-sheet", sheet, "--json"
    )
    assert code == 0, err
    assert [a["query"] for a in json_lines(out)] == [
        {"text": "a red circle"},
        {"text": "two blue stars"},
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 500 and drawn.height > 400
    picture = pictures / "more" / "c.png"
    code, out, err = cli("query", tmp_path / "g", "--image", picture, "--topk", 1)
    assert code == 0 and "more/c.png" in out, err


def test_texts_as_a_gallery(model, pictures, tmp_path, cli):
    (tmp_path / "lines.txt").write_text("a red circle\ntwo blue stars\n")
    code, _, err = cli("build", tmp_path / "g", "--model", model, "--texts", tmp_path / "lines.txt")
    assert code == 0, err
    query = ("query", tmp_path / "g", "--topk", 1, "--json")
    hit = json_lines(cli(*query, "--text", "two blue stars")[1])[0]["hits"][0]
    assert (hit["id"], hit["text"]) == (1, "two blue stars")
    sheet = ("--contact-sheet", tmp_path / "s.png")
    assert cli(*query, "--image", pictures / "a.png", *sheet)[0] == 0
    (tmp_path / "lines.txt").write_text("one\n\n")
    code, _, err = cli("build", tmp_path / "n", "--model", model, "--texts", tmp_path / "lines.txt")
    assert code == 1 and "lines.txt: text 2 is empty" in err


def test_model_that_does_not_fit_is_refused(model, pictures, tmp_path, cli):
    from divse.encoder import DivSE

    cli("build", tmp_path / "g", "--model", model, "--images", pictures)
    other = DivSE.from_pretrained(model)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    query = ("query", tmp_path / "g", "--text", "a red circle", "--topk", 1)
    code, out, err = cli(*query, "--model", tmp_path / "other")
    assert (code, out) == (1, "") and "does not fit" in err and "fingerprint" in err
    assert cli(*query, "--model", model)[0] == 0
