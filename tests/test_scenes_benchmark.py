"""scenes as a benchmark: version 1 never changes, its truth read afresh, its dials, its files."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from divse.cli.data_app import main
from divse.data import captions
from divse.data.scene_export import BATCH, export, statistics
from divse.data.scene_objects import DISTINCT_COLOURS, FACT, FACTS, LOOKS
from divse.data.scenes import LEVELS, PICTURES, SceneOptions, describe, digest, load
from divse.training.config import read_preset

# Pixels, captions, owners and fitting pairs. If one of these must change, the version must too.
GOLDEN = {
    "scenes-v1": "b68f02be5b1f0228edecae231d979a81",
    "scenes-v1-easy": "a33553dd2f2b826e79879e4ccec15943",
    "scenes-v1-hard": "ab93e3a9787f7a0070b52c28d7742441",
    "scenes-v1+pictures=60+seed=1": "cab1034fd7dee2361874ddd4a1f75273",
    "scenes-v1+detail=3+pictures=60+seed=7": "8de5bb15c8bb7efe6e01b11f209c7883",
}
WORDS = {"colour": r"red|orange|yellow|green|cyan|blue|purple|pink"}
WORDS |= {"size": "small|large", "texture": "plain|striped|dotted"}
WORDS |= {"shape": "circle|square|triangle|cross|ring|star"}
PLACES = {"row": {"at the top": "top", "halfway down": "middle", "at the bottom": "bottom"}}
PLACES["column"] = {"on the left": "left", "in the centre": "centre", "on the right": "right"}
RANK = {name: i for words in PLACES.values() for i, name in enumerate(words.values())}


def read_phrase(phrase):
    """Facts of one noun phrase, by the grammar of docs/scenes.md."""
    facts = {}
    for fact, places in PLACES.items():
        for place, value in places.items():
            if place in phrase:
                facts[fact] = value
    for fact, words in WORDS.items():
        if found := re.search(rf"\b({words})\b", phrase):
            facts[fact] = found[0]
    return facts


def fits(objects, sentence):
    """Whether a sentence fits a list of objects in words: every choice of objects is tried."""
    parts = re.split(r" (and|left of|right of|above|below) ", sentence)
    told = [read_phrase(phrase) for phrase in parts[::2]]
    relation = parts[1] if len(parts) > 1 else None
    for chosen in itertools.permutations(objects, len(told)):
        if all(o[f] == v for o, facts in zip(chosen, told, strict=True) for f, v in facts.items()):
            across, down = ([RANK[o[axis]] for o in chosen] for axis in ("column", "row"))
            if relation in (None, "and") or {
                "left of": across[0] < across[-1],
                "right of": across[0] > across[-1],
                "above": down[0] < down[-1],
                "below": down[0] > down[-1],
            }.get(relation):
                return True
    return False


@pytest.mark.parametrize("name", GOLDEN)
def test_version_1_never_changes(name):
    level, *dials = name.removeprefix("scenes-v1").removeprefix("-").split("+")
    options = {key: int(value) for key, value in (dial.split("=") for dial in dials)}
    data = load("test", level=level or "default", **options)
    assert data.name == name
    assert digest(data)[:32] == GOLDEN[name]


def test_the_digest_sees_pixels_captions_and_truth():
    options = {"pictures": 6}
    kinds = [{}, {"noise": 8}, {"detail": 4}, {"seed": 1}, {"clutter": 1}]
    found = {digest(load("test", **options, **dials)) for dials in kinds}
    found.add(digest(load("val", **options)))
    assert len(found) == len(kinds) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    export(path, SceneOptions.of("hard", pictures=30), ("val", "test"))
    return path


def rows(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("level", LEVELS)
def test_the_truth_is_what_the_sentences_say_of_the_objects(level, tmp_path):
    export(tmp_path, SceneOptions.of(level, pictures=30), ["test"])
    told = rows(tmp_path)
    with np.load(tmp_path / "relevance.npz") as truth:
        relevance, owner = truth["test"], truth["test_image_of_caption"]
    sentences = [sentence for row in told for sentence in row["captions"]]
    plain = np.array([[fits(row["objects"], s) for s in sentences] for row in told])
    assert np.array_equal(relevance, plain)
    assert relevance[owner, np.arange(len(sentences))].all() and plain.sum() > len(sentences)


def test_files_hold_what_the_loader_gives(folder):
    for split in ("val", "test"):
        data = load(split, level="hard", pictures=30)
        read = captions.load(split, path=folder)
        assert read.captions == data.captions and read.image_ids == data.image_ids
        assert all(np.array_equal(read.image(i), data.image(i)) for i in range(30))
        with np.load(folder / "relevance.npz") as truth:
            assert np.array_equal(truth[split], data.relevance)
        told = json.loads((folder / "scenes.json").read_text())
        assert told["name"] == data.name == "scenes-v1-hard+pictures=30"
        assert told["splits"][split]["digest"] == digest(data)
        assert SceneOptions(**told["options"]) == SceneOptions.of("hard", pictures=30)


def test_an_export_goes_on_and_keeps_to_its_world(folder, tmp_path):
    picture = folder / "images" / "val-00003.png"
    before = picture.read_bytes()
    picture.unlink()
    export(folder, SceneOptions.of("hard", pictures=30), ("val", "test"))
    assert picture.read_bytes() == before
    with pytest.raises(ValueError, match=r"holds scenes-v1-hard\+pictures=30, scenes-v1 was asked"):
        export(folder)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="not empty"):
        export(tmp_path)


def test_the_command_writes_a_level(tmp_path, capsys):
    words = ["scenes", "--out", str(tmp_path / "easy"), "--level", "easy", "--split", "test"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--option", "pictures=4", "--option", "objects=[2,2]", "--json"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "scenes-v1-easy+objects=2-2+pictures=4"
    assert len(rows(tmp_path / "easy")) == 4 and told["splits"]["test"]["captions"] == 20
    with pytest.raises(SystemExit) as left:
        main([*words[:3], "--level", "impossible"])
    assert left.value.code == 1
    assert "level must be one of easy, default, hard" in capsys.readouterr().err


def test_names_tell_the_level_and_what_differs_from_it():
    assert SceneOptions().name == "scenes-v1" == load("test", pictures=None).name
    assert SceneOptions.of("hard").name == "scenes-v1-hard"
    assert SceneOptions(**LEVELS["easy"]).name == "scenes-v1-easy"
    assert SceneOptions(objects=[3, 4], seed=2).name == "scenes-v1+objects=3-4+seed=2"
    assert SceneOptions.of("hard", twins=False).name == "scenes-v1-hard+twins=false"
    assert describe("val", SceneOptions(pictures=1)).scenes.shape == (1, 6, 6)


def test_a_run_of_the_preset_says_its_version():
    assert read_preset("scenes")["data"]["options"] == {"version": SceneOptions().version}


def test_twins_differ_in_one_look_of_one_object():
    scenes = describe("test", SceneOptions(pictures=60, twins=True, colours=3)).scenes
    apart = scenes[::2] != scenes[1::2]
    assert (apart.sum(axis=(1, 2)) == 1).all()
    changed = apart.any(axis=(0, 1))
    assert changed[: len(LOOKS)].all() and not changed[len(LOOKS) :].any()
    alone = describe("test", SceneOptions(pictures=60, colours=3)).scenes
    assert np.array_equal(scenes[::2], alone[::2])


@pytest.mark.parametrize("colours", [2, 4, 8])
@pytest.mark.parametrize("twins", [False, True])
def test_a_small_vocabulary_has_so_many_colours(colours, twins):
    drawn = describe("test", SceneOptions(pictures=40, colours=colours, twins=twins))
    used = {
        FACTS["colour"][value] for value in drawn.scenes[:, :, FACT["colour"]].flat if value >= 0
    }
    assert used == set(DISTINCT_COLOURS[:colours])


def test_clutter_and_noise_change_pixels_alone():
    plain, other = load("test", pictures=8), load("test", pictures=8, clutter=10, noise=40)
    assert plain.captions == other.captions
    assert np.array_equal(plain.relevance, other.relevance)
    clean = load("test", pictures=8, noise=0)
    littered = load("test", pictures=8, noise=0, clutter=10)
    for i in range(8):
        differing = (clean.image(i) != littered.image(i)).any(axis=2)
        assert 0 < differing.mean() < 10 * 6 * 6 / 64**2  # discs of up to 3 pixels radius
        grain = load("test", pictures=8, noise=40).image(i).astype(int) - clean.image(i)
        assert 30 < abs(grain).max() <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": 1}, "colours must be 2 .. 8"),
        ({"clutter": 21}, "clutter must be 0 .. 20"),
        ({"noise": -1}, "noise must be 0 .. 60"),
        ({"objects": [3]}, "objects must be"),
        ({"level": "medium"}, "level must be one of easy, default, hard, got 'medium'"),
        ({"twin": True}, "its options are objects, .* and level"),
    ],
)
def test_new_dials_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("test", **options)


def test_statistics_of_ambiguity():
    relevance = np.zeros((100, 4), bool)
    relevance[:1, 0] = relevance[:2, 1] = relevance[:3, 2] = relevance[:, 3] = True
    told = statistics(relevance)
    assert (told["pictures"], told["captions"], told["alone"]) == (100, 4, 0.25)
    assert told["fits_per_caption"] == [1.75, 2.5, 27.25]
    others = BATCH - 1
    two, three = others / 99, 1 - (99 - others) * (98 - others) / (99 * 98)
    assert told["batch_ambiguity"] == pytest.approx((0 + two + three + 1) / 4, abs=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_the_page_says_what_is(level):
    page = (Path(__file__).resolve().parents[1] / "docs" / "scenes.md").read_text()
    options = SceneOptions.of(level)
    assert f"| `{options.name}` | `{GOLDEN[options.name][:16]}` |" in page
    told = statistics(load("test", level=level).relevance)
    (row,) = re.findall(rf"^\| `{options.name}` .*\|.*\|.*\|.*\|$", page, re.MULTILINE)
    quartiles = [
        ", ".join(f"{q:g}" for q in told[f"fits_per_{side}"]) for side in ("caption", "picture")
    ]
    shares = [
        f"{100 * told['fitting']:.2f}%",
        *(f"{100 * told[name]:.1f}%" for name in ("alone", "batch_ambiguity")),
    ]
    assert all(figure in row for figure in (*quartiles, *shares)), row
    fewest, most = options.objects
    dials = f"| `{level}` | {fewest}-{most} | {options.detail} | {options.colours} |"
    assert dials in page and all(
        f"| {split} | {n} | {5 * n} |" in page for split, n in PICTURES.items()
    )
