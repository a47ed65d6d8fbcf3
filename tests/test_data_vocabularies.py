"""Vocabularies of the older code: its words, and nothing that a pickle could run."""

import json
import pickle
import sys
import types

import pytest

from divse.data.older_vocabulary import read_words

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "do", "n't", "."]
CONTENT = {
    "word2idx": {word: i for i, word in enumerate(WORDS)},
    "idx2word": dict(enumerate(WORDS)),
    "idx": len(WORDS),
}


class Ran(Exception):
    pass


def run_me():
    raise Ran


class Hostile:
    def __reduce__(self):
        return run_me, ()


def pickled(monkeypatch, protocol=2, name="vocab", **changes):
    """A pickle of the class that the older code has in vocab.py."""
    module = types.ModuleType(name)
    cls = type("Vocabulary", (), {"__module__": name, "__qualname__": "Vocabulary"})
    module.Vocabulary = cls
    monkeypatch.setitem(sys.modules, name, module)
    found = cls()
    found.__dict__.update(CONTENT | changes)
    return pickle.dumps(found, protocol)


def test_json_of_scan(tmp_path):
    path = tmp_path / "coco_precomp_vocab.json"
    path.write_text(json.dumps(CONTENT))
    assert read_words(path) == WORDS


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickled_vocabulary_is_read_without_its_module(tmp_path, monkeypatch, protocol):
    path = tmp_path / "f30k_vocab.pkl"
    path.write_bytes(pickled(monkeypatch, protocol))
    monkeypatch.delitem(sys.modules, "vocab")
    assert read_words(path) == WORDS


def test_pickles_run_nothing(tmp_path, monkeypatch):
    path = tmp_path / "v.pkl"
    for content in (
        pickle.dumps(Hostile()),
        pickled(monkeypatch, extra=Hostile()),
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cvocab\nVocabulary.__init__.__globals__\n.",
        pickled(monkeypatch, name="elsewhere"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"only vocab.Vocabulary is accepted"):
            read_words(path)
    path.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="is no pickled vocabulary"):
        read_words(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"words": []}, "no word2idx"),
        ({"word2idx": {"a": 0, "b": 2}}, "must be 0 to 1, each once"),
        ({"word2idx": {"a": "0"}}, "no word2idx, word -> id"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content, message):
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_words(tmp_path / "v.json")
    with pytest.raises(FileNotFoundError, match="no vocabulary at"):
        read_words(tmp_path / "w.json")
    with pytest.raises(ValueError, match=r"got 'v.txt'"):
        (tmp_path / "v.txt").touch()
        read_words(tmp_path / "v.txt")
