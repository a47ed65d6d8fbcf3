"""`divse-search` from build to answer: as a subprocess where that matters, in process elsewhere."""

import json
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import json_lines
from gallery_cases import ragged, vectors

import divse
from divse.cli import arguments, main
from divse.cli.app import COMMANDS
from divse.search.gallery import Gallery
from divse.search.plans import PLANS


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
    assert code == 0 and "Examples" in out and "Exit codes" in out and "130" in out
    for command in COMMANDS:
        code, out, _ = cli(command, "--help")
        assert code == 0 and f"divse-search {command} g" in out and "--json" in out
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


def test_choices_are_those_of_the_library():
    assert tuple(arguments.Plan) == PLANS
    assert set(arguments.SimilarityName) == set(divse.SIMILARITIES)


def test_completion(files, cli, monkeypatch):
    """What a shell asks for: options, choices, and the gallery's columns."""

    def complete(*words):
        monkeypatch.setenv("_DIVSE_SEARCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["divse-search", *map(str, words)]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return cli()[1].split()

    assert complete("ver") == ["verify"]
    assert complete("query", "g", "--plan", "c") == ["certified"]
    assert complete("query", files / "g", "--where", "ye") == ["year"]
    assert complete("query", "nowhere", "--where", "ye") == []


def test_columns_are_completed_behind_a_condition(files):
    class Context:
        params, args = {"gallery": files / "g"}, []

    found = list(arguments.column_names(Context, "year > 3 and i"))
    assert found == ["year > 3 and id"]


def test_progress_on_request(files, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("divse.cli.progress.DELAY", 0)
    build = ("build", tmp_path / "g", "--embeddings", files / "sets.npy", "--overwrite")
    shown = cli("--progress", *build)[2]
    assert "build: 100%" in shown and "30/30" in shown and "sets/s" in shown
    assert cli(*build)[2] == cli("--no-progress", *build)[2] == ""


def test_index_is_built_when_large_or_asked_for(files, tmp_path, cli, monkeypatch):
    def indexes(*options):
        build = ("build", tmp_path / "g", "--embeddings", files / "sets.npy", "--overwrite")
        code, _, err = cli(*build, *options)
        assert code == 0, err
        return len(list((tmp_path / "g").glob("index-*")))

    assert (indexes(), indexes("--index")) == (0, 1)
    monkeypatch.setattr("divse.search.plans.is_large", lambda gallery: True)
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
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (shown["codes"].strip(), shown["index"].strip()) == ("yes", "-")
    assert cli("verify", files / "g")[1].startswith("whole: 30 sets")


def test_verify_names_the_damaged_file(files, tmp_path, cli):
    Gallery.create(tmp_path / "g", vectors(3, 2, 8))
    path = next((tmp_path / "g").glob("*/embeddings.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, out, err = cli("verify", tmp_path / "g")
    assert (code, out) == (1, "") and "embeddings.npy" in err and err.count("\n") == 1


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


def test_traceback_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "info", str(tmp_path / "nowhere")])
