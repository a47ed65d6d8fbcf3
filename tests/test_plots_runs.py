"""Figures of trained runs, through the command: what is drawn is what the model says."""

import json

import layouts
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from plot_cases import assert_legible, words

import divse
from divse import DivSE
from divse.cli.plot_app import main
from divse.encoder import build_model, build_tokenizer
from divse.plots import attention, neighbours, questions, space
from divse.plots.measured import measured_shares
from divse.plots.trained import TrainedRun, first
from divse.training.command_line import parse
from divse.training.losses import similarity_options
from divse.training.run import load_splits


def write_run(folder, **changes):
    """A run folder as train.py leaves it, untrained."""
    words = tiny.arguments(**changes)
    if "data__name" in changes:  # the tiny run's options are those of scenes
        place = words.index("--data.options")
        del words[place : place + 2]
    config, _ = parse(words)
    torch.manual_seed(0)
    similarity = similarity_options(config.loss)
    tokenizer = build_tokenizer(config.text, load_splits(config)["train"].captions)
    model = build_model(config, tokenizer, similarity)
    DivSE(model, config, tokenizer, similarity).save_pretrained(folder)
    (folder / "settings.json").write_text(json.dumps(config.to_dict()))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "scenes", model__k=3)


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    layouts.regions(data)
    changes = {"data__name": "regions", "data__path": data}
    channels = layouts.CHANNELS
    changes |= {"image__encoder": "regions", "image__region_dim": channels}
    return write_run(tmp_path_factory.mktemp("runs") / "regions", **changes)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("divse.plots.page.DPI", 50)  # quicker to write


@pytest.fixture
def plot(capsys, tmp_path):
    """Run the command -> (exit code, paths it wrote, stderr)."""

    def call(*arguments, out="figure.png"):
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments] + ["--out", str(tmp_path / out)])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out.split(), captured.err

    return call


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "holiday.png")
    return tmp_path / "holiday.png"


@pytest.mark.parametrize(
    "command",
    [
        "attention --index 3",
        "attention --topk 1",
        "nearest --index 3 --index 1",
        "nearest --text star --topk 3",
        "space --count 2",
        "supervision",
    ],
)
def test_every_command_writes_a_picture(scenes, plot, command):
    name, *options = command.split()
    code, paths, error = plot(name, scenes, *options)
    assert (code, error) == (0, "")
    with Image.open(paths[0]) as image:
        assert image.format == "PNG" and image.width == 450
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_both_formats(scenes, plot, picture):
    code, paths, _ = plot("attention", scenes, "--image", picture, out="both")
    assert code == 0 and [path.rsplit(".", 1)[1] for path in paths] == ["png", "svg"]
    assert plot("space", scenes, "--format", "svg", out="one")[1][0].endswith("one.svg")


def test_maps_lie_over_the_centre_that_the_model_reads(tmp_path, picture):
    run = TrainedRun.open(write_run(tmp_path / "run", image__crop_pct=0.5))
    looked = questions.look(run, questions.ask_pictures(run, [], [picture], 2, 0, 1))
    with Image.open(picture) as image:
        pixels = np.asarray(image)  # (40, 60, 3)
    np.testing.assert_array_equal(looked[0].view, pixels[10:30, 20:40])
    page = attention.attention_page(looked, run.data.captions, "captions")
    whole, first_map = page.figure.axes[:2]
    shown, _ = attention.spotlight(pixels[10:30, 20:40], looked[0].maps[0])
    np.testing.assert_array_equal(first_map.images[0].get_array(), shown)
    assert whole.images[0].get_array().shape == (40, 60, 3)
    assert any("picture's centre" in text for text in words(page))
    assert_legible(page)


def test_attention_shows_the_models_own_maps(scenes):
    run = TrainedRun.open(scenes)
    asked = questions.ask_pictures(run, [3], [], 2, 0, 1)
    looked = questions.look(run, asked)
    expected = run.encoder.attend_images([run.data.image(3)])[0].numpy()
    np.testing.assert_array_equal(looked[0].maps, expected)
    page = attention.attention_page(looked, run.data.captions, "captions")
    said = words(page)
    assert {"element 1", "element 2", "element 3", "whole set", "test-00003"} <= set(said)
    assert len(page.figure.axes) == 4  # the picture, and one map an element
    for k, axes in enumerate(page.figure.axes[1:]):
        shown, _ = attention.spotlight(run.data.image(3), expected[k])
        np.testing.assert_array_equal(axes.images[0].get_array(), shown)
    assert_legible(page)


def test_a_spotlight_shows_the_picture_where_the_weight_is():
    pixels, weights = np.zeros((64, 32, 3), np.uint8), np.zeros((4, 2))
    weights[0, 0] = 1
    shown, light = attention.spotlight(pixels, weights)
    assert shown.shape == (attention.SIDE, attention.SIDE // 2, 3) and light.max() == 1
    assert shown[10, 10].max() < 5 and shown[-10:, -10:].min() > 215


def test_half_of_a_map():
    level, area = attention.half(np.array([[4.0, 1], [2, 1]]))
    assert (level, area) == (4.0, 0.25)
    assert attention.half(np.ones(10)) == (1.0, 0.5)


def test_neighbours_are_the_nearest(scenes):
    run = TrainedRun.open(scenes)
    one = run.images([2]).numpy().values[0]
    found = neighbours.nearest(one, run.texts, 3)
    texts = run.texts.numpy().values
    for element, near in zip(one, found, strict=True):
        cosines = (texts @ element).max(axis=1)
        assert [n.row for n in near] == list(np.argsort(-cosines, kind="stable")[:3])
        assert near[0].score == pytest.approx(cosines.max(), abs=1e-6)
    whole = neighbours.nearest_wholes(run.images([2]), run.texts, 1, run.encoder.similarity)[0]
    scores = divse.score(one[None], texts, **run.encoder.similarity)
    assert (whole.row, whole.score) == (int(scores.argmax()), pytest.approx(float(scores.max())))


def test_equal_captions_are_told_once():
    found = neighbours.best(np.array([0.1, 0.9, 0.8, 0.9]), 3, ["a", "b", "b", "c"])
    assert [n.row for n in found] == [1, 3, 0]


def test_captions_that_fit_are_marked(scenes):
    run = TrainedRun.open(scenes)
    asked = questions.ask_pictures(run, [3], [], 10, 0, 1)[0].asked
    assert asked.fits == {
        n.row
        for found in [*asked.elements, asked.whole]
        for n in found
        if run.data.relevance[3, n.row]
    }
    page = neighbours.captions_page([asked], run.data.captions, "captions")
    marked = sum(said.startswith("✓") for said in words(page))
    shown = [n for found in [*asked.elements, asked.whole] for n in found]
    assert marked == sum(n.row in asked.fits for n in shown)
    assert_legible(page)


def test_pictures_of_captions(scenes):
    run = TrainedRun.open(scenes)
    text = run.data.captions[0]
    asked, pixels = questions.ask_texts(run, [text, "no caption of these"], 3)
    assert asked[0].fits is not None and asked[1].fits is None
    page = neighbours.pictures_page(asked, pixels, "pictures")
    assert len(page.figure.axes) == 2 * 4 * 3 and f"“{text}”" in words(page)
    assert_legible(page)


def test_many_elements_take_several_rows():
    columns = neighbours.Columns(12)
    assert (columns.bands, columns.columns) == (3, 4) and len(set(columns.hues)) == 12
    assert columns.left(11) + columns.width <= 8.8


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_space_draws_every_element_once(scenes, method):
    run = TrainedRun.open(scenes)
    families, others = questions.families_of(run, [1, 4])
    page = space.space_page(families, others, method, "others")
    axes = page.figure.axes[0]
    drawn = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets())])
    captions = len(run.data.captions_of(1)) + len(run.data.captions_of(4))
    assert len(drawn) == len(others) + 3 * (2 + captions)
    assert len(axes.patches) == 2  # a hull a picture
    assert len({tuple(patch.get_facecolor()) for patch in axes.patches}) == 2
    assert_legible(page)


def test_pca_keeps_most_variance():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((50, 6)) * [5, 3, 1, 0.1, 0.1, 0.1]
    flat = space.pca(points)
    np.testing.assert_allclose(
        np.abs(flat.points[:, 0]).std(), np.abs(points[:, 0]).std(), rtol=0.1
    )
    total = (points - points.mean(0)).var(axis=0).sum()
    share = 100 * flat.points.var(axis=0) / total
    assert f"({share[0]:.0f} %" in flat.axes[0] and f"({share[1]:.0f} %" in flat.axes[1]


def test_hulls():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5], [0.5, 0]])
    assert sorted(map(tuple, space.hull(square))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(space.hull(square[:2])) == 2 and len(space.hull(square[[0, 0]])) == 1


def test_measured_shares_sum_to_one(scenes):
    shares = measured_shares([scenes, scenes])
    assert [one.name for one in shares] == ["MIL", "Chamfer", "Smooth-Chamfer", "MP"]
    for one in shares:
        for side in (one.images, one.texts):
            assert side.shape == (2, 3)
            np.testing.assert_allclose(side.sum(1), 1)
            assert (np.diff(side, axis=1) <= 1e-12).all()
    assert shares[0].images[0, 0] > shares[3].images[0, 0]  # MIL is sparser than MP


def test_regions_are_bars_or_boxes(regions, plot, picture, tmp_path):
    run = TrainedRun.open(regions)
    looked = questions.look(run, questions.ask_pictures(run, [1], [], 2, 0, 1))
    page = attention.attention_page(looked, run.data.captions, "captions")
    bars = [patch.get_height() for patch in page.figure.axes[0].patches]
    np.testing.assert_allclose(bars, looked[0].maps[0] * len(bars), rtol=1e-6)
    assert_legible(page)
    count = looked[0].maps.shape[1]
    np.save(tmp_path / "boxes.npy", np.tile([5.0, 5, 30, 30], (count, 1)))
    boxes = ["--boxes", tmp_path / "boxes.npy"]
    assert plot("attention", regions, "--index", 1, "--image", picture, *boxes)[0] == 0
    assert "--image FILE" in plot("attention", regions, "--index", 1, *boxes)[2]
    np.save(tmp_path / "boxes.npy", np.ones((2, 2)))
    assert "x1 y1 x2 y2" in plot("attention", regions, "--index", 1, "--image", picture, *boxes)[2]
    assert "give as many" in plot("attention", regions, "--image", picture)[2]
    assert "no pictures to show" in plot("nearest", regions, "--text", "words")[2]


def test_a_part_of_the_split(scenes):
    run = TrainedRun.open(scenes, pictures=4)
    whole = TrainedRun.open(scenes).data
    assert len(run.data) == 4 and len(run.data.captions) == 20
    np.testing.assert_array_equal(run.data.relevance, whole.relevance[:4, :20])
    assert first(whole, 0) is whole
    with pytest.raises(ValueError, match="0 for all"):
        first(whole, -1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attention", "RUN", "--index", "99"], "0 .. 15"),
        (["attention", "RUN", "--split", "tset"], "train, val, test"),
        (["attention", "RUN", "--boxes", "x.npy"], "regions of one picture"),
        (["nearest", "RUN", "--text", "a", "--index", "1"], "one kind of question"),
        (["space", "RUN", "--method", "isomap"], "pca, tsne, umap"),
        (["space", ".", "--method", "pca"], "settings.json"),
        (["variance", "RUN"], "neither a finished run"),
    ],
)
def test_errors_say_what_to_do(scenes, plot, arguments, said):
    code, _, error = plot(*[scenes if word == "RUN" else word for word in arguments])
    assert code == 1 and said in error and error.count("\n") == 1


@pytest.mark.parametrize(("module", "method"), [("sklearn.manifold", "tsne"), ("umap", "umap")])
def test_methods_that_are_not_installed(monkeypatch, module, method):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match="pip install"):
        space.METHODS[method](np.zeros((5, 3)))
