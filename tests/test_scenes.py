"""scenes: determinism, the oracle against a plain re-reading, the dials, what the pictures show."""

import hashlib
import itertools
import time

import numpy as np
import pytest

from divse.data import DATASETS
from divse.data.scene_captions import Caption, fitting, parse
from divse.data.scene_drawing import PALETTE, SIDE, draw_scene
from divse.data.scene_objects import FACT, FACTS, Draws, draw_objects
from divse.data.scenes import PICTURES, SceneOptions, describe, load


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def facts_of(row):
    return {name: FACTS[name][row[index]] for name, index in FACT.items()}


def fits_plainly(objects, caption):
    """The oracle once more, as slow and plain as possible."""
    present = [row for row in objects if row[0] >= 0]

    def has(row, facts):
        return all(row[FACT[name]] == value for name, value in facts.items())

    if caption.other is None:
        return any(has(row, caption.subject) for row in present)
    row, column = FACT["row"], FACT["column"]
    stands = {
        "and": lambda a, b: True,
        "left of": lambda a, b: a[column] < b[column],
        "right of": lambda a, b: a[column] > b[column],
        "above": lambda a, b: a[row] < b[row],
        "below": lambda a, b: a[row] > b[row],
    }[caption.relation]
    return any(
        has(a, caption.subject) and has(b, caption.other) and stands(a, b)
        for a, b in itertools.permutations(present, 2)
    )


def test_the_bytes_are_the_same_everywhere():
    data = load("test", pictures=20)
    pictures = np.stack([data.image(i) for i in range(20)])
    assert pictures.shape == (20, SIDE, SIDE, 3) and pictures.dtype == np.uint8
    assert digest(pictures) == PICTURES_DIGEST
    assert hashlib.sha256("\n".join(data.captions).encode()).hexdigest()[:16] == CAPTIONS_DIGEST


PICTURES_DIGEST = "57c8447965302565"
CAPTIONS_DIGEST = "d72b6e73f4373958"


def test_draws_are_uniform_and_choose_without_repetition():
    draws = Draws(1, 2)
    counts = np.bincount([draws.below(5) for _ in range(5000)], minlength=5)
    assert counts.min() > 850 and counts.max() < 1150
    assert sorted(draws.choose(9, 9)) == list(range(9))
    assert {draws.between(2, 4) for _ in range(100)} == {2, 3, 4}
    assert len(draws.octets(13)) == 13


def test_seeds_and_splits_are_different_worlds():
    first = load("test", pictures=50)
    for other in (load("val", pictures=50), load("test", pictures=50, seed=1)):
        assert first.captions != other.captions
    train, test = describe("train"), describe("test")
    assert not {s.tobytes() for s in train.scenes} & {s.tobytes() for s in test.scenes}


def test_a_larger_split_begins_with_the_smaller():
    small, large = load("val", pictures=10), load("val", pictures=30)
    assert large.captions[:50] == small.captions
    assert (large.image(9) == small.image(9)).all()


def test_the_detail_of_captions_leaves_the_pictures_alone():
    vague, exact = load("test", pictures=5, detail=3), load("test", pictures=5, detail=6)
    assert all((vague.image(i) == exact.image(i)).all() for i in range(5))
    assert vague.captions != exact.captions


@pytest.mark.parametrize("split", PICTURES)
def test_every_picture_has_five_different_captions_that_fit_it(split):
    data = load(split, pictures=100)
    assert (np.bincount(data.image_of_caption) == 5).all()
    assert all(len(set(data.captions_of(i))) == 5 for i in range(100))
    assert data.relevance[data.image_of_caption, np.arange(500)].all()


@pytest.mark.parametrize("detail", [2, 4, 6])
def test_the_oracle_equals_a_plain_reading_of_the_sentence(detail):
    drawn = describe("val", SceneOptions(pictures=40, detail=detail))
    told = drawn.fitting()
    plain = np.array(
        [[fits_plainly(s, parse(str(c))) for c in drawn.captions] for s in drawn.scenes]
    )
    assert (told == plain).all()


def test_relations_need_two_different_objects():
    scene = np.full((1, 3, 6), -1, dtype=np.int8)
    scene[0, 0] = [1, 0, 0, 0, 0, 0]  # a large plain red circle at the top on the left
    assert fitting(scene, [parse("a red circle")])[0, 0]
    assert not fitting(scene, [parse("a red circle and a large thing")])[0, 0]
    scene[0, 1] = [1, 0, 5, 1, 0, 2]  # a large plain blue square at the top on the right
    told = [
        "a red circle and a large thing",
        "a red circle left of a square",
        "a circle above a square",
    ]
    assert fitting(scene, [parse(t) for t in told])[0].tolist() == [True, True, False]


def test_captions_are_read_back_as_they_were_written():
    drawn = describe("val", SceneOptions(pictures=100))
    assert [parse(str(c)) for c in drawn.captions] == drawn.captions
    assert str(parse("A small  ORANGE star at the top")) == "a small orange star at the top"
    assert parse("an orange thing") == Caption({"colour": 1})
    with pytest.raises(ValueError, match="cannot read 'hexagon'"):
        parse("a red hexagon")


def test_captions_are_ambiguous_both_ways():
    data = load("test")
    per_caption, per_picture = data.relevance.sum(axis=0), data.relevance.sum(axis=1)
    assert 2 <= np.median(per_caption) <= 6
    assert (per_caption > 1).mean() > 0.85
    assert np.median(per_picture) > 10


def test_detail_makes_captions_more_specific():
    sizes = [
        np.median(describe("test", SceneOptions(detail=d, pictures=200)).fitting().sum(axis=0))
        for d in (2, 3, 4, 5, 6)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3 * sizes[-1]


@pytest.mark.parametrize("objects", [(2, 2), (3, 6), (9, 9)])
def test_objects_keep_to_their_number_and_to_one_a_cell(objects):
    scenes = describe("test", SceneOptions(pictures=50, objects=objects)).scenes
    present = scenes[:, :, 0] >= 0
    assert present.sum(axis=1).min() >= objects[0] and present.sum(axis=1).max() <= objects[1]
    for scene, here in zip(scenes, present, strict=True):
        cells = scene[here][:, [FACT["row"], FACT["column"]]]
        assert len(np.unique(cells, axis=0)) == here.sum()


@pytest.mark.parametrize("shape", FACTS["shape"])
def test_an_object_is_where_and_what_it_is_said_to_be(shape):
    heights = []
    for size, column in itertools.product(range(2), range(3)):
        thing = [size, 0, FACTS["colour"].index("blue"), FACTS["shape"].index(shape), 1, column]
        picture = draw_scene(np.array([thing], dtype=np.int8), Draws(0)).astype(int)
        blue = np.abs(picture - PALETTE["blue"]).max(axis=2) < 40
        rows, columns = np.nonzero(blue)
        assert abs(rows.mean() - 32) < 6 and abs(columns.mean() - (32 + 21 * (column - 1))) < 6
        heights.append(np.ptp(rows) + 1)
    assert min(heights[3:]) > 1.2 * max(heights[:3])


def test_textures_and_shapes_look_different():
    looks = itertools.product(range(2), range(3), range(1), range(6))
    drawn = [draw_scene(np.array([[*look, 1, 1]], dtype=np.int8), Draws(3)) for look in looks]
    for a, b in itertools.combinations(drawn, 2):
        assert (np.abs(a.astype(int) - b).max(axis=2) > 60).sum() >= 8


def test_thousands_of_pictures_take_seconds():
    begin = time.perf_counter()
    data = load("train", pictures=500)
    assert sum(int(data.image(i).sum()) for i in range(500)) > 0
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": (1, 3)}, "objects must be"),
        ({"objects": (3, 10)}, "objects must be"),
        ({"detail": 7}, "detail must be 2"),
        ({"pictures": 0}, "pictures must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"version": 99}, "version 99 was asked for"),
        ({"details": 3}, "no option 'details'; its options are objects, detail"),
        ({"path": "somewhere"}, "generated"),
    ],
)
def test_dials_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("test", **options)


def test_unknown_splits_and_pictures_are_refused():
    with pytest.raises(ValueError, match="train, val, test"):
        load("validation")
    with pytest.raises(IndexError, match="holds 3"):
        load("test", pictures=3).image(3)


def test_scenes_are_in_the_table():
    assert len(DATASETS["scenes"]("val")) == PICTURES["val"]


def test_scenes_need_a_place_for_every_object():
    assert (draw_objects(Draws(5), 4, 7)[:, 0] >= 0).sum() >= 4
