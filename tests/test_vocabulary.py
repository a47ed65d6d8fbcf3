"""vocabulary: words, ids, padding, and the file."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divse.data import Vocabulary
from divse.data.vocabulary import pad, tokenize

CAPTIONS = ["A red circle, left of a Blue square.", "a circle", "The cat's T-shirt!"]


def test_tokens_are_lowercase_words_without_punctuation():
    assert tokenize(CAPTIONS[0]) == ["a", "red", "circle", "left", "of", "a", "blue", "square"]
    assert tokenize(CAPTIONS[2]) == ["the", "cat's", "t-shirt"]
    assert tokenize("Füße, 猫 42_x  -- ") == ["füße", "猫", "42", "x"]


def test_ids_follow_frequency_then_spelling():
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.words[:4] == ["<pad>", "<unk>", "a", "circle"]
    assert vocabulary.words[4:] == sorted(vocabulary.words[4:])
    assert len(Vocabulary.build(CAPTIONS, min_count=2)) == 4
    assert Vocabulary.build(reversed(CAPTIONS)).words == vocabulary.words


def test_captions_become_padded_ids_and_lengths():
    vocabulary = Vocabulary.build(CAPTIONS)
    ids, lengths = vocabulary(["a circle", "a yellow circle", "?"])
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.tolist() == [[2, 3, 0], [2, 1, 3], [1, 0, 0]]
    assert lengths.tolist() == [2, 3, 1]
    assert vocabulary.decode(ids[1].tolist()) == "a <unk> circle"
    assert Vocabulary(vocabulary.words, max_length=2)(["a a a a"])[0].shape == (1, 2)


def test_no_captions_give_an_empty_batch():
    ids, lengths = pad([])
    assert ids.shape == (0, 0) and lengths.shape == (0,)


def test_the_file_brings_back_the_same_vocabulary(tmp_path):
    vocabulary = Vocabulary.build([*CAPTIONS, "Füße"], max_length=7)
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.words == vocabulary.words and again.max_length == 7
    (tmp_path / "vocabulary.json").write_text('{"idx2word": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocabulary.json is not a vocabulary that divse wrote"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "begins with '<pad>' and '<unk>'"),
        (["<pad>", "<unk>", "a", "a"], "'a' is 2 x"),
    ],
)
def test_broken_vocabularies_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_a_length_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        Vocabulary(["<pad>", "<unk>"], max_length=0)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_every_text_has_at_least_one_token_and_known_words_come_back(captions):
    vocabulary = Vocabulary.build(captions)
    ids, lengths = vocabulary(captions)
    assert (lengths >= 1).all() and ids.shape == (len(captions), int(lengths.max()))
    for row, caption in zip(ids.tolist(), captions, strict=True):
        assert vocabulary.decode(row) == (" ".join(tokenize(caption)) or "<unk>")
