"""Queries as JSON lines: answered in order, a bad one with an error, the others all the same."""

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from cli_cases import json_lines
from gallery_cases import vectors

from divse.cli.query_lines import arrived
from divse.search.gallery import Gallery

SETS = vectors(30, 3, 8)  # what the gallery of `files` holds


@pytest.fixture
def ask(files, cli, monkeypatch):
    """Give lines on stdin -> (exit code, answers, stderr)."""

    def call(*lines, gallery=None, options=("-",)):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        stdin = io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape")))
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = cli("query", gallery or files / "g", *options)
        return code, json_lines(out), err

    return call


def embedding(row, **others):
    return {"embedding": SETS[row].tolist(), **others}


def test_each_line_is_answered_in_order_with_its_own_options(ask):
    lines = [
        embedding(4),
        embedding(9, topk=2, id="nine"),
        "",
        embedding(5, where="year < 1993", id=5),
        embedding(6, topk=2),
    ]
    code, answers, err = ask(*lines)
    assert (code, err) == (0, "")
    names = [{"line": 1}, {"line": 2, "id": "nine"}, {"line": 4, "id": 5}, {"line": 5}]
    assert [found["query"] for found in answers] == names
    assert [len(found["hits"]) for found in answers] == [10, 2, 3, 2]
    assert [found["hits"][0]["id"] for found in answers[:2]] == ["thing 4", "thing 9"]
    assert answers[3]["hits"][0]["id"] == "thing 6"
    assert {hit["year"] for hit in answers[2]["hits"]} == {1990, 1991, 1992}


BAD = {
    "oops": "not JSON: Expecting value",
    "[1, 2]": "expected an object such as",
    "{}": "give one of text, image, embedding; got none",
    '{"text": "a", "image": "b"}': "got text and image",
    '{"text": "a", "colour": 1}': "unknown colour; known are text, image, embedding, id, topk",
    '{"text": ""}': "text: got '', expected str, not empty",
    '{"text": 3}': "text: got 3, expected str",
    '{"embedding": [[1, 2], [3]]}': "expected K vectors of D numbers each",
    '{"embedding": [1, 2]}': "got shape (2,), expected K vectors",
    '{"embedding": []}': "expected list, not empty",
    '{"embedding": [["a"]]}': "expected K vectors of D numbers",
    '{"embedding": [[1, 2]]}': "queries have D=2, the gallery has D=8",
    '{"embedding": [[0, 0, 0, 0, 0, 0, 0, 0]]}': "element 0 of set 0 is zero",
    '{"embedding": [[NaN, 0, 0, 0, 0, 0, 0, 1]]}': "is not finite",
    '{"text": "a", "topk": 0}': "topk: got 0, expected at least 1",
    '{"text": "a", "topk": true}': "topk: got True, expected int",
    '{"text": "a", "id": [1]}': "id: got [1], expected str or int",
    '{"text": "a"}': "records no model: name one with --model",
    '{"image": "nowhere.png"}': "records no model",
    "\udcff": "not JSON",
    "[" * 5000: "",
}


def test_bad_lines_do_not_stop_the_others(ask):
    good = embedding(3, topk=1)
    code, answers, err = ask(good, *BAD, good, embedding(2, where="colour = 1"))
    assert code == 1
    assert err == f"divse-search: error: {len(BAD) + 1} of {len(BAD) + 3} queries failed; " + (
        "each says why in its line\n"
    )
    for number, (found, message) in enumerate(zip(answers[1:], BAD.values(), strict=False), 2):
        assert message in found["error"] and found["query"]["line"] == number
        assert "hits" not in found
    assert answers[0]["hits"] == answers[-2]["hits"] and answers[0]["hits"][0]["id"] == "thing 3"
    assert "unknown column 'colour'" in answers[-1]["error"]


def test_pictures_and_texts(model, pictures, tmp_path, cli, ask):
    assert cli("build", tmp_path / "g", "--model", model, "--images", pictures)[0] == 0
    lines = [
        {"text": "a red circle", "topk": 1},
        {"image": str(pictures / "b.jpg"), "topk": 1},
        {"image": str(pictures / "notes.txt")},
        {"text": "two blue stars", "topk": 1, "id": 7},
        {"image": "nowhere.png"},
    ]
    sheet = tmp_path / "found.png"
    options = ("--stdin", "--explain", "--contact-sheet", sheet)
    code, answers, _ = ask(*lines, gallery=tmp_path / "g", options=options)
    assert code == 1 and sheet.stat().st_size > 1000
    assert answers[1]["hits"][0]["id"] == "b.jpg"
    assert answers[3]["query"] == {"line": 4, "id": 7, "text": "two blue stars"}
    assert "explain" in answers[0]["hits"][0]
    assert "notes.txt" in answers[2]["error"] and "nowhere.png" in answers[4]["error"]


def test_lines_of_a_file(files, tmp_path, cli):
    (tmp_path / "q.jsonl").write_text(json.dumps(embedding(8)) + "\n")
    code, out, err = cli("query", files / "g", tmp_path / "q.jsonl", "--topk", 1)
    assert code == 0 and json_lines(out)[0]["hits"][0]["id"] == "thing 8", err
    code, out, err = cli("query", files / "g", tmp_path / "none.jsonl")
    assert (code, out) == (1, "") and "no such file of queries" in err


class Pieces(io.RawIOBase):
    """A pipe that gives its content in pieces."""

    def __init__(self, pieces):
        self._pieces = [*pieces, b""]

    def read1(self, _):
        return self._pieces.pop(0)


def test_lines_arrive_whole_and_as_soon_as_they_are_there(monkeypatch):
    monkeypatch.setattr("divse.cli.query_lines.BATCH", 2)
    pieces = [b"a", b"b", b"c\n\nd\ne\nf", b"\n", b"g"]
    batches = [[(1, b"abc"), (3, b"d")], [(4, b"e")], [(5, b"f")], [(6, b"g")]]
    assert list(arrived(Pieces(pieces))) == batches


def test_an_answer_comes_before_the_next_question(files):
    """A conversation over pipes: nothing waits for the end of the input."""
    command = [sys.executable, "-m", "divse.cli", "query", str(files / "g"), "-", "--topk", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        for row in (11, 3):
            process.stdin.write(json.dumps(embedding(row)).encode() + b"\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            assert found["hits"][0]["id"] == f"thing {row}"
        process.stdin.close()
        assert process.wait() == 0
        guard.cancel()


def test_a_reader_that_goes_away_is_no_error(files, tmp_path):
    """As in `divse-search query ... | head -1`."""
    many = tmp_path / "q.jsonl"
    many.write_text((json.dumps(embedding(1)) + "\n") * 3000)
    read, write = os.pipe()
    command = [sys.executable, "-m", "divse.cli", "query", str(files / "g"), str(many)]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        os.read(read, 100)
        os.close(read)
        assert (process.wait(120), process.stderr.read()) == (0, b"")


def test_a_gallery_without_sets_fails_at_once(tmp_path, ask):
    Gallery.create(tmp_path / "g", np.array(SETS[:2])).remove([0, 1])
    code, answers, err = ask(embedding(1), gallery=tmp_path / "g")
    assert (code, answers) == (1, []) and "is empty: every set was removed" in err
