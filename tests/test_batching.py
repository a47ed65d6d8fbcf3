"""batching: whole pictures, an order that can be taken up anywhere, augmentations on request."""

import numpy as np
import pytest
import torch

from divse.data import Batches, ImageTextData, Vocabulary
from divse.data.augmentation import CHANGES, drop_regions, resized_crop
from divse.data.pictures import fit


def example(pictures=11, seed=0):
    """Pictures of different sizes with 1 to 4 captions each; every caption names its picture."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size=pictures)
    shots = [rng.integers(0, 256, size=(8 + i, 12, 3), dtype=np.uint8) for i in range(pictures)]
    return ImageTextData(
        name="example",
        split="train",
        image_ids=[f"p{i}" for i in range(pictures)],
        captions=[f"p{i} " + "word " * j for i in range(pictures) for j in range(counts[i])],
        image_of_caption=np.repeat(np.arange(pictures), counts),
        read_image=lambda i: shots[i],
    )


def batches_of(data, **settings):
    settings = {"batch_size": 4, "size": 16, "seed": 3} | settings
    return Batches(data, Vocabulary.build(data.captions), **settings)


def same(a, b):
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_all_captions_of_a_picture_are_in_its_batch():
    data = example()
    batches = batches_of(data)
    seen = []
    for batch in batches.epoch(0):
        assert batch.pixels.shape == (4, 3, 16, 16) and batch.pixels.dtype == torch.uint8
        counts = [len(data.captions_of(i)) for i in batch.image_index.tolist()]
        assert torch.bincount(batch.image_of_caption, minlength=4).tolist() == counts
        owners = data.image_of_caption[batch.caption_index.numpy()]
        assert (owners == batch.image_index[batch.image_of_caption].numpy()).all()
        seen += batch.image_index.tolist()
    assert len(batches) == 2 and len(seen) == len(set(seen)) == 8


def test_tokens_and_pixels_belong_to_the_rows_they_claim():
    data = example()
    vocabulary = Vocabulary.build(data.captions)
    batch = next(batches_of(data).epoch(2))
    assert batch.tokens.shape[1] == int(batch.lengths.max())
    for tokens, length, row in zip(batch.tokens, batch.lengths, batch.caption_index, strict=True):
        assert vocabulary.decode(tokens.tolist()) == data.captions[row].strip()
        assert int((tokens != 0).sum()) == length
    plain = {i: b for b in batches_of(data).in_order() for i, b in zip(
        b.image_index.tolist(), b.pixels, strict=True)}  # fmt: skip
    for index, pixels in zip(batch.image_index.tolist(), batch.pixels, strict=True):
        assert torch.equal(pixels, plain[index])


def test_the_order_follows_from_seed_and_epoch():
    data = example()

    def order(epoch, **settings):
        chosen = [b.image_index for b in batches_of(data, **settings).epoch(epoch)]
        return torch.cat(chosen).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1) and order(0) != order(0, seed=4)


@pytest.mark.parametrize("augment", [(), ("crop", "flip", "shift")])
def test_an_epoch_can_be_taken_up_anywhere(augment):
    data = example(23)
    whole = list(batches_of(data, augment=augment).epoch(5))
    later = list(batches_of(data, augment=augment).epoch(5, start=3))
    assert len(whole) == 5 and len(later) == 2
    assert all(same(a, b) for a, b in zip(whole[3:], later, strict=True))


def test_in_order_covers_everything_once_and_is_never_augmented():
    data = example()
    plain, augmented = batches_of(data), batches_of(data, augment=["crop"])
    seen = list(plain.in_order())
    assert torch.cat([b.image_index for b in seen]).tolist() == list(range(11))
    assert torch.cat([b.caption_index for b in seen]).tolist() == list(range(len(data.captions)))
    assert all(same(a, b) for a, b in zip(seen, augmented.in_order(), strict=True))
    assert not same(next(plain.epoch(0)), next(augmented.epoch(0)))


def test_parts_of_batches_make_the_whole():
    """What n processes read: runs of each training batch, and every n-th batch in order."""
    batches = batches_of(example())
    shared = zip(*(batches.epoch(1, part=(i, 3)) for i in range(3)), strict=True)
    for whole, parts in zip(batches.epoch(1), shared, strict=True):
        assert [len(p.image_index) for p in parts] == [2, 1, 1]
        for name in ("pixels", "image_index", "caption_index", "lengths"):
            joined = torch.cat([getattr(p, name) for p in parts])
            assert torch.equal(joined, getattr(whole, name))
    seen = [b.image_index for i in range(2) for b in batches.in_order(part=(i, 2))]
    assert torch.cat(seen).sort().values.tolist() == list(range(11))


def test_without_a_size_no_picture_is_read():
    data = example()
    object.__setattr__(data, "read_image", None)
    batch = next(batches_of(data, size=None).epoch(0))
    assert batch.pixels is None and batch.to("cpu").pixels is None


def test_pictures_are_read_once_if_they_fit_in_memory(monkeypatch):
    data, reads = example(), []
    read = data.read_image
    object.__setattr__(data, "read_image", lambda i: reads.append(i) or read(i))
    batches = batches_of(data)
    first, second = list(batches.in_order()), list(batches.in_order())
    assert sorted(reads) == list(range(11))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr("divse.data.batching.CACHE_BYTES", 100)
    again = list(batches_of(data).in_order())
    assert len(reads) == 22 and all(same(a, b) for a, b in zip(first, again, strict=True))


def test_a_batch_is_never_larger_than_the_data():
    batches = batches_of(example(), batch_size=100)
    assert len(batches) == 1 and len(next(batches.epoch(0)).image_index) == 11


@pytest.mark.parametrize("name", CHANGES)
def test_augmentations_keep_the_form_and_the_original(name):
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    original, rng = picture.copy(), np.random.default_rng(0)
    results = [CHANGES[name](picture, rng) for _ in range(8)]
    assert all(r.shape == picture.shape and r.dtype == np.uint8 for r in results)
    assert any((r != picture).any() for r in results) and (picture == original).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch_size": 0}, "at least 1 picture"), ({"augment": ["rotate"]}, "got 'rotate'")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        batches_of(example(), **settings)


@pytest.mark.parametrize(
    ("captions", "owners", "message"),
    [
        (["a", "b"], [0], "one entry for each of the 2 captions"),
        (["a", "b"], [0, 2], r"must lie in 0..1, got 0..2"),
        (["a", "b"], [1, 0], "must not decrease"),
    ],
)
def test_rows_that_are_no_captions_of_consecutive_pictures_are_refused(captions, owners, message):
    with pytest.raises(ValueError, match=message):
        ImageTextData("d", "val", ["x", "y"], captions, np.array(owners), lambda i: None)


def test_an_oracle_of_the_wrong_shape_is_refused():
    data = example()
    object.__setattr__(data, "oracle", lambda: np.ones((2, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"one row a picture .* got \(2, 3\)"):
        _ = data.relevance


def regions(pictures=9, seed=1):
    """Data of regions instead of pictures, 1 to 5 each; feature 0 names picture and region."""
    rng = np.random.default_rng(seed)
    rows = [np.full((n, 3), i, np.float32) for i, n in enumerate(rng.integers(1, 6, pictures))]
    for row in rows:
        row[:, 1] = 1 + np.arange(len(row))
    return ImageTextData(
        name="regions",
        split="train",
        image_ids=[f"p{i}" for i in range(pictures)],
        captions=[f"caption {i}" for i in range(pictures)],
        image_of_caption=np.arange(pictures),
        read_image=None,
        read_features=lambda i: rows[i],
    )


def test_regions_are_padded_with_zeros_and_counted():
    data = regions()
    for batch in batches_of(data).in_order():
        assert batch.pixels is None and batch.image_inputs[0] is batch.regions
        for i, rows, count in zip(
            batch.image_index, batch.regions, batch.region_counts, strict=True
        ):
            assert (rows[:count].numpy() == data.features(int(i))).all()
            assert not rows[count:].any()
        assert batch.to("cpu").regions.dtype == torch.float32


def test_regions_are_dropped_in_training_only_and_repeatably():
    data = regions(40)
    batches = batches_of(data, region_drop=0.5, batch_size=40)
    first, again, other = (next(batches.epoch(e)) for e in (0, 0, 1))
    assert same(first, again) and first.region_counts.min() == 1
    assert not torch.equal(first.region_counts, other.region_counts[first.image_index.argsort()])
    left = int(first.region_counts.sum()) / int(next(batches.in_order()).region_counts.sum())
    assert 0.4 < left < 0.75
    assert next(batches.in_order()).region_counts.tolist() == [
        len(data.features(i)) for i in range(40)
    ]


def test_one_region_always_stays():
    rng = np.random.default_rng(0)
    assert all(len(drop_regions(np.ones((2, 1), np.float32), 0.99, rng)) for _ in range(50))


def test_asking_for_what_is_not_there_says_what_is():
    with pytest.raises(ValueError, match="holds features of regions, not pictures"):
        regions().image(0)
    with pytest.raises(ValueError, match="holds pictures, not features of regions"):
        example().features(0)
    with pytest.raises(ValueError, match="region_drop must be at least 0"):
        batches_of(regions(), region_drop=1.0)
    assert regions().feature_dim == 3 and example().feature_dim == 0


@pytest.mark.parametrize("shape", [(40, 40, 3), (300, 4, 3), (3, 200, 3)])
def test_resized_crops_are_square_and_within_the_picture(shape):
    picture = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
    crops = [resized_crop(picture, 16, np.random.default_rng(i)) for i in range(5)]
    assert all(c.shape == (16, 16, 3) for c in crops)
    assert any((c != crops[0]).any() for c in crops[1:]) or min(shape[:2]) < 8


def test_a_view_is_cut_from_the_picture_as_it_was_read():
    data = example()
    viewed = batches_of(data, augment=["resized_crop", "flip"])
    assert same(next(viewed.epoch(0)), next(viewed.epoch(0)))
    assert same(next(viewed.in_order()), next(batches_of(data).in_order()))
    assert not same(next(viewed.epoch(0)), next(batches_of(data).epoch(0)))


@pytest.mark.parametrize("cached", [True, False])
def test_pictures_are_centre_crops_if_asked_for(monkeypatch, cached):
    monkeypatch.setattr("divse.data.batching.CACHE_BYTES", 2**30 if cached else 0)
    data = example()
    batches = batches_of(data, crop_pct=0.875)
    for pixels, index in (x for b in batches.in_order() for x in zip(b.pixels, b.image_index)):  # noqa: B905
        expected = fit(data.image(int(index)), 16, 0.875)
        assert (pixels.permute(1, 2, 0).numpy() == expected).all()
    views = next(batches_of(data, augment=["resized_crop"]).epoch(0)).pixels
    assert torch.equal(
        next(batches_of(data, augment=["resized_crop"], crop_pct=0.875).epoch(0)).pixels, views
    )
