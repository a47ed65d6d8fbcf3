"""train.py runs an epoch of every preset: small data of the real layouts, tiny real classes."""

import json

import layouts
import pytest
import tiny
import tiny_backbones
import torch

import train
from divse import DivSE
from divse.training.config import Config, presets, read_preset

REGIONS, COCO, FLICKR = "regions", "karpathy_coco", "karpathy_flickr30k"
DATA = {
    "coco_regions_bigru": REGIONS,
    "f30k_regions_bigru": REGIONS,
    "coco_resnext_bert": COCO,
    "f30k_resnext_bert": FLICKR,
    "coco_resnet152_gru": COCO,
    "f30k_resnet152_gru": FLICKR,
    "clip": COCO,
    "captions": "",
    "scenes": "",
}
RESNET = ["--image.options", *tiny_backbones.RESNET, "--image.weights", "", "--image.size", "32"]


@pytest.fixture(autouse=True)
def other_tests_choose_their_own_kernels():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def small(name, folder):
    """What makes a preset small and brings what it needs, in the folder."""
    words = [*tiny_backbones.HEAD.split(), "--train.batch_size", "3", "--epochs", "1"]
    if DATA[name]:
        path = folder / "data"
        layouts.LAYOUTS[DATA[name]][1](path)
        words += ["--data", str(path)]
    if "gru" in name:
        vectors = tiny_backbones.write_glove(folder / "glove.txt", "a the dog unlikely")
        words += ["--text.vectors", str(vectors), "--text.hidden", "16"]
    if "resn" in name:
        words += RESNET
    if "bert" in name:
        words += ["--text.path", str(tiny.write_bert(folder / "bert"))]
    if name == "clip":
        model = str(tiny_backbones.write_clip(folder / "clip"))
        words += ["--image.name", model, "--text.path", model, "--image.size", "32"]
    return words


def test_every_preset_is_here():
    assert set(DATA) == set(presets())


def test_the_captions_preset_without_pretrained_encoders(tmp_path, capsys):
    data = str(tiny.write_captions(tmp_path / "data"))
    words = ["--preset", "captions", "--data", data, "--out", str(tmp_path / "run")]
    words += [*tiny_backbones.HEAD.split(), "--train.batch_size", "3", "--epochs", "1"]
    train.main([*words, "--image.encoder", "cnn", "--text.encoder", "gru"])
    assert "epoch   1" in capsys.readouterr().out


@pytest.mark.parametrize("similarity", ["maxsim", "mp", "mil", "chamfer"])
def test_training_with_other_similarities(similarity, tmp_path, capsys):
    words = [*tiny.arguments(train__epochs=1), "--loss.similarity", similarity]
    train.main([*words, "--out", str(tmp_path / "run")])
    assert "epoch   1" in capsys.readouterr().out
    assert DivSE.from_pretrained(tmp_path / "run").similarity["similarity"] == similarity


def test_only_resnet_152_is_evaluated_on_centre_crops():
    for name in presets():
        image = Config.of(read_preset(name)).image
        expected = (224, 256) if "resnet152" in name else (image.size, 0)
        assert (image.size, image.crop_pct and image.size / image.crop_pct) == expected


@pytest.mark.parametrize("name", [name for name, layout in DATA.items() if layout])
def test_an_epoch(name, tmp_path, capsys):
    words = ["--preset", name, "--out", str(tmp_path / "run"), *small(name, tmp_path)]
    train.main([*words, "--train.device", "cpu", "--train.gallery", "false"])
    out = capsys.readouterr().out
    assert "epoch   1" in out
    assert ("word vectors: 3 of" in out) == ("gru" in name)
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert figures["rsum"] > 0
    loaded = DivSE.from_pretrained(tmp_path / "run")
    assert loaded.config.image.crop_pct == (0.875 if "resnet152" in name else 0)
    assert loaded.encode_texts(["a dog"]).values.shape == (1, loaded.config.model.k, 16)
