"""Splits: dropped words, positives, and features of frozen encoders in place of pixels."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from training_cases import trainer

from divse import DivSE
from divse.data import Batch, Vocabulary
from divse.data.packed import write_packed
from divse.data.published_vocabulary import PublishedVocabulary
from divse.training.batch_scores import positive_mask
from divse.training.feature_store import FeatureStore
from divse.training.split import drop_words


def test_dropped_words(tmp_path):
    batch = next(trainer(tmp_path).train.batches.epoch(0))
    dropped = drop_words(batch, 0.5, 1, 20, [0])
    assert (dropped.lengths >= 1).all() and (dropped.lengths <= batch.lengths).all()
    assert dropped.tokens.shape[1] == dropped.lengths.max()
    real = torch.arange(dropped.tokens.shape[1]) < dropped.lengths[:, None]
    assert (dropped.tokens[real] > 0).all() and (dropped.tokens[~real] == 0).all()
    assert (dropped.tokens == 1).any()
    untouched = drop_words(batch, 1e-12, 1, 20, [0])
    assert torch.equal(untouched.tokens, batch.tokens)
    all_gone = drop_words(batch, 0.9, 1, 20, [1])
    assert (all_gone.lengths >= 1).all()


def test_shares_of_dropped_words():
    """Of the words touched half are masked, a tenth replaced, four tenths deleted."""
    rows, words, mask = 400, 30, 77
    tokens = torch.full((rows, words), 50)
    whole = torch.full((rows,), words)
    batch = Batch(None, tokens, whole, torch.arange(rows), torch.arange(rows), torch.arange(rows))
    dropped = drop_words(batch, 0.2, mask, 50, [0])
    total = rows * words
    masked = int((dropped.tokens == mask).sum()) / total
    random = int(((dropped.tokens != mask) & (dropped.tokens != 50) & (dropped.tokens > 0)).sum())
    deleted = (total - int(dropped.lengths.sum())) / total
    assert masked == pytest.approx(0.1, abs=0.01)
    assert random / total == pytest.approx(0.02, abs=0.005)
    assert deleted == pytest.approx(0.08, abs=0.01)


def test_a_caption_never_loses_its_last_word():
    rows = torch.arange(200)
    batch = Batch(None, torch.full((200, 1), 5), torch.ones(200).long(), rows, rows, rows)
    dropped = drop_words(batch, 0.9, 1, 20, [0])
    assert (dropped.lengths == 1).all() and (dropped.tokens > 0).all()
    assert {1, 5} < set(dropped.tokens.flatten().tolist())


def test_hidden_words_take_the_mask_of_the_vocabulary_by_name(tmp_path):
    words = ["<pad>", "<unk>", "a", "<mask>", "dog"]
    assert (Vocabulary(words).mask, PublishedVocabulary(words).mask) == (3, 3)
    assert Vocabulary(words[:3]).mask == 1  # of <unk>, which has a use in captions of others
    run = trainer(tmp_path, data__word_drop=0.9)
    assert run.train.mask == 1
    seen = []
    run.train = run.update.train = replace(run.train, mask=4)
    embed = run.model.text.encoder.local
    run.model.text.encoder.local = lambda t, n: seen.append(t) or embed(t, n)
    run.update.backward(next(run.train.batches.epoch(0)), 0)
    assert (seen[0] == 4).sum() > (seen[0] == 1).sum()


def test_positives_of_a_batch(tmp_path):
    split = trainer(tmp_path).train
    batch = next(split.batches.epoch(0))
    owners = split.labels(batch).positives()
    assert torch.equal(owners, batch.image_of_caption)
    own = positive_mask(owners, 4)
    assert own.shape == (4, 20)
    assert (own.sum(dim=0) == 1).all() and (own.sum(dim=1) == 5).all()
    # a caption that two pictures share, word for word, fits both
    same = np.arange(len(split.data.captions))
    first, last = int(batch.caption_index[0]), int(batch.caption_index[-1])
    same[last] = same[first]
    both = replace(split, same=same).labels(batch).positives()
    assert both[0, -1] and both[-1, 0] and both.sum() == own.sum() + 2


def test_feature_store(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(6, 2)
    blocks = [(rows[:4], np.array([1, 3])), (rows[4:], np.array([2]))]
    store = FeatureStore(write_packed(tmp_path / "f.npy", lambda done: blocks))
    assert len(store) == 3
    local = FeatureStore.open(tmp_path / "f.npy").take(np.array([2, 0]), torch.device("cpu"))
    assert local.lengths.tolist() == [2, 1]
    assert local.values.tolist() == [[[8, 9], [10, 11]], [[0, 1], [0, 0]]]
    assert not list(tmp_path.glob("*.partial*"))


def test_frozen_encoders_run_once(tmp_path, monkeypatch):
    settings = tiny.frozen_image(tmp_path)
    run = trainer(tmp_path, **settings, train__epochs=1)
    grids, _ = run.train.encode(run.model)
    data = run.train.data
    direct = [run.model.images(torch.from_numpy(small(data.image(i)))[None]) for i in range(3)]
    torch.testing.assert_close(
        grids.values[:3], torch.cat([d.sets for d in direct]), atol=5e-3, rtol=0
    )
    monkeypatch.setattr(type(run.model.image.encoder), "local", None)  # must not be called again
    trainer(tmp_path, **settings, train__epochs=1).fit()


def small(picture):
    from divse.data.pictures import resize

    return resize(picture, 32).transpose(2, 0, 1).copy()


def test_mirrored_features_of_frozen_encoders(tmp_path):
    settings = tiny.frozen_image(tmp_path)
    run = trainer(tmp_path, **settings, train__epochs=1, data__augment=["flip"])
    assert len(run.train.image_stores) == 2 and len(run.val.image_stores) == 1
    plain, mirrored = (s.take(np.arange(3), run.device).values for s in run.train.image_stores)
    assert not torch.equal(plain, mirrored)
    pixels = torch.from_numpy(np.stack([small(run.train.data.image(i)) for i in range(3)]))
    expected = run.model.image.local(pixels.flip(3)).values
    torch.testing.assert_close(mirrored, expected, atol=2e-2, rtol=2e-2)
    run.fit()


def test_statistics_of_frozen_features(tmp_path):
    settings = tiny.frozen_image(tmp_path) | {
        "train__epochs": 1,
        "image__center": True,
        "image__level": 2,
        "image__pool": ["mean", "max", "detail"],
        "image__input_dropout": 0.3,
        "image__global_dropout": 0.5,
    }
    run = trainer(tmp_path / "run", **settings)
    tower = run.model.image.eval()
    local = run.train.image_stores[0].take(np.arange(16), run.device)
    pooled = tower.standardize(tower.encoder(local, None).pooled)
    torch.testing.assert_close(pooled.mean(dim=0), torch.zeros(pooled.shape[1]), atol=1e-5, rtol=0)
    for part in pooled.split(tower.encoder.pooled_groups, dim=1):
        assert part.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-4)
    run.fit()
    kept = DivSE.from_pretrained(tmp_path / "run").model.image.standardize
    assert torch.equal(kept.mean, tower.standardize.mean)
