"""Encoders of every kind, with tiny random models of the real classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_backbones
import torch

from divse import DivSE, score
from divse.encoder import build_model, build_tokenizer
from divse.models import layers
from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig
from divse.models.features import POOLS, Local, masked_max, masked_mean
from divse.models.positions import positions, spread_positions
from divse.models.pretrained import model_folder, timm_model
from divse.models.projection import LocalProjection
from divse.models.regions import RegionEncoder
from divse.models.slot_attention import length_mask
from divse.models.word_vectors import read_word_vectors

HEAD = HeadConfig(k=2, dim=16, blocks=2, heads=2, head_dim=8, feedforward=2)
REGIONS = ImageConfig(
    encoder="regions", region_dim=12, projection="local_mlp", pool=["max"], projection_dropout=0.1
)
GRU = TextConfig(word_dim=8, hidden=16, projection="none")


def encoder_of(image=REGIONS, text=GRU, head=HEAD, similarity=None):
    torch.manual_seed(0)
    config = TwoTowerConfig(image, text, head)
    tokenizer = build_tokenizer(text, tiny.CAPTIONS)
    return DivSE(build_model(config, tokenizer, similarity).eval(), config, tokenizer, similarity)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def two_towers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_backbones.write_clip(folder, request.param)


def region_features(counts=(5, 36, 1), channels=12):
    rng = np.random.default_rng(0)
    return [rng.random((count, channels)).astype(np.float32) for count in counts]


def test_regions_of_any_count():
    encoder, pictures = encoder_of(), region_features()
    together = encoder.encode_images(pictures).values
    for row, picture in enumerate(pictures):
        alone = encoder.encode_images([picture]).values[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
        shuffled = encoder.encode_images([picture[::-1].copy()]).values[0]
        torch.testing.assert_close(alone, shuffled, atol=1e-5, rtol=1e-5)  # they have no order


@pytest.mark.parametrize("training", [False, True])
def test_padding_of_regions_changes_nothing(training):
    encoder = encoder_of(image=replace(REGIONS, projection_dropout=0.0))
    encoder.model.train(training)
    values, counts = torch.rand(3, 7, 12), torch.tensor([7, 4, 2])
    padding = ~length_mask(counts, 7)[:, :, None]
    with torch.no_grad():
        torch.manual_seed(1)
        zero = encoder.model.images(values.masked_fill(padding, 0.0), counts).sets
        torch.manual_seed(1)
        poisoned = encoder.model.images(values.masked_fill(padding, math.nan), counts).sets
    torch.testing.assert_close(zero, poisoned)


def test_padding_is_not_in_the_statistics_of_the_batch_norm():
    torch.manual_seed(0)
    projection = LocalProjection(6, 8, mlp=True, dropout=0.0)
    alone = LocalProjection(6, 8, mlp=True, dropout=0.0)
    alone.load_state_dict(projection.state_dict())
    values = torch.rand(2, 5, 6)
    mask = length_mask(torch.tensor([5, 3]), 5)
    padded = projection(values, mask)
    rows = alone.project(values[mask])
    torch.testing.assert_close(padded[mask], rows)
    assert (padded[~mask] == 0).all()
    torch.testing.assert_close(projection.mlp[1].running_mean, alone.mlp[1].running_mean)
    first = projection.fc(values[mask])
    torch.testing.assert_close(rows, first + projection.mlp(first))


def test_regions_of_another_detector_are_refused():
    with pytest.raises(ValueError, match="--image.region_dim 9"):
        encoder_of().encode_images(region_features(channels=9))
    with pytest.raises(ValueError, match="one array"):
        encoder_of().encode_images([np.zeros((0, 12))])
    with pytest.raises(ValueError, match="no backbone to freeze"):
        RegionEncoder(REGIONS).freeze()


def test_the_papers_global_feature_has_no_layer_of_its_own():
    model = encoder_of().model
    assert isinstance(model.image.project, torch.nn.Identity)
    assert isinstance(model.text.project, torch.nn.Identity)
    with pytest.raises(ValueError, match="make them equal"):
        encoder_of(text=replace(GRU, hidden=8))
    with pytest.raises(ValueError, match="no local features to project"):
        encoder_of(text=replace(GRU, projection="local"))


@pytest.mark.parametrize("name", POOLS)
def test_pools_do_not_see_padding(name):
    values = torch.randn(2, 5, 3)
    mask = length_mask(torch.tensor([5, 2]), 5)
    poisoned = values.masked_fill(~mask[:, :, None], math.nan)
    torch.testing.assert_close(POOLS[name](poisoned, mask)[1:], POOLS[name](values[1:, :2], None))


def test_pools_of_nothing_hidden():
    values = torch.randn(2, 5, 3)
    torch.testing.assert_close(masked_mean(values, None), values.mean(dim=1))
    torch.testing.assert_close(masked_max(values, None), values.amax(dim=1))


@pytest.mark.parametrize("frozen", [True, False])
def test_clip_and_siglip_on_both_sides(two_towers, frozen, tmp_path):
    image = ImageConfig(
        encoder="transformer", name=str(two_towers), size=32, pool=["mean", "max"], frozen=frozen
    )
    text = TextConfig(
        encoder="transformer", path=str(two_towers), pool=["last", "direction"], frozen=frozen
    )
    encoder = encoder_of(image, text)
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8) for i in range(2)]
    local = encoder.model.image.local(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert local.values.shape == (1, 16, 16)  # patches without the class token
    torch.testing.assert_close(
        encoder.model.image.encoder.mean.flatten(), torch.tensor([0.48, 0.46, 0.41])
    )
    encoder.save_pretrained(tmp_path)
    loaded = DivSE.from_pretrained(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    for call, items in (("encode_images", pictures), ("encode_texts", tiny.CAPTIONS)):
        ours, theirs = (getattr(e, call)(items).values for e in (encoder, loaded))
        assert torch.equal(ours, theirs)
    together = encoder.encode_texts(tiny.CAPTIONS).values
    alone = torch.cat([encoder.encode_texts([c]).values for c in tiny.CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_vit_reads_its_own_size(two_towers):
    image = ImageConfig(encoder="transformer", name=str(two_towers), size=64)
    with pytest.raises(ValueError, match="--image.size 32"):
        encoder_of(image)


def test_a_vit_without_its_pixel_statistics_is_refused(two_towers, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((two_towers / name).read_bytes())
    image = ImageConfig(encoder="transformer", name=str(tmp_path), size=32)
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        encoder_of(image)


@pytest.mark.parametrize("name", ["resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "resnet152.tv_in1k"])
def test_the_papers_backbones(name):
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    image = ImageConfig(encoder="timm", name=name, size=64, options=options, projection="local")
    tower = encoder_of(image).model.image
    local = tower.local(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert local.values.shape == (2, 4, 64)
    assert tower.projection.fc.weight.shape == (16, 64)
    assert tower.embed(local).sets.shape == (2, 2, 16)


def test_tuning_the_last_blocks(two_towers):
    image = ImageConfig(encoder="transformer", name=str(two_towers), size=32, tuned_blocks=1)
    text = TextConfig(encoder="transformer", path=str(two_towers), tuned_blocks=2)
    model = encoder_of(image, text).model.train()
    for tower, tuned in ((model.image, {"2"}), (model.text, {"1", "2"})):
        backbone = tower.encoder.backbone
        trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
        blocks = {n.split("layers.")[1].split(".")[0] for n in trained if "layers." in n}
        assert blocks == tuned and not any("embedding" in n for n in trained)
        fixed = [m for m in backbone.modules() if list(m.parameters()) and not m.training]
        assert fixed and tower.head.training
    assert not model.frozen_state()  # a backbone that is partly trained is saved with the rest


@pytest.mark.parametrize(
    ("name", "blocks"), [("test_resnet", 4), ("test_vit", 6), ("test_convnext", None)]
)
def test_depths_of_timm_backbones(name, blocks):
    found = layers.depths(timm_model(name, "", {}))
    assert min(found.values()) == 0 and max(found.values()) >= 2
    if blocks:
        assert max(found.values()) == blocks
    scales = layers.scales(timm_model(name, "", {}), 0.5)
    assert set(scales) == set(found) and max(scales.values()) == 1


def test_depths_of_bert(tmp_path):
    text = TextConfig(encoder="transformer", path=str(tiny.write_bert(tmp_path)))
    found = layers.depths(encoder_of(text=text).model.text.encoder.backbone)
    assert found["embeddings.word_embeddings.weight"] == 1
    assert found["encoder.layer.0.output.dense.weight"] == 0
    assert found["pooler.dense.weight"] == 0


def test_glove_files_as_they_are(tmp_path, capsys):
    path = tmp_path / "glove.txt"
    path.write_text(". . . 9 9 9\nred 1 2 3\ntshirt 4 5 6\nunused 7 7 7\nred 0 0 0\n")
    found = read_word_vectors(path, ["<pad>", "<unk>", "red", "t-shirt", "novel"], 3)
    assert found.rows.tolist() == [2, 3] and found.missing == ["<pad>", "<unk>", "novel"]
    torch.testing.assert_close(found.values, torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert "2 of 5 words" in found.report(5) and "novel" in found.report(5)
    path.write_text("2 3\n" + "red 1 2 3\n")  # fastText's header
    assert read_word_vectors(path, ["red"], 3).rows.tolist() == [0]
    text = replace(GRU, word_dim=3, vectors=str(path))
    encoder = encoder_of(text=text)
    row = encoder.tokenizer.words.index("red")
    assert encoder.model.text.encoder.words.weight[row].tolist() == [1, 2, 3]
    assert "word vectors: 1 of" in capsys.readouterr().out


def test_glove_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="nlp.stanford.edu"):
        read_word_vectors(tmp_path / "none", ["a"], 3)
    path = tmp_path / "glove.txt"
    path.write_text("a 1 2 3 4\n")
    with pytest.raises(ValueError, match="word_dim is 5"):
        read_word_vectors(path, ["a"], 5)
    with pytest.raises(ValueError, match="word_dim is 3"):
        read_word_vectors(path, ["a"], 3)


def test_weights_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="hf download timm/resnet18"):
        timm_model("resnet18.tv_in1k", "hub", {})
    text = TextConfig(encoder="transformer", path="hub:nobody/no-such-model")
    with pytest.raises(FileNotFoundError, match="hf download nobody/no-such-model"):
        encoder_of(text=text)
    with pytest.raises(FileNotFoundError, match="hub:OWNER/NAME"):
        model_folder(str(tmp_path))


@pytest.mark.parametrize("kind", ["sine", "spread"])
def test_positions_of_sequences_and_grids(kind):
    inputs, lengths = torch.zeros(2, 6, 8), torch.tensor([6, 4])
    assert positions("none", (), inputs, lengths) is None
    assert positions(kind, None, inputs, lengths) is None
    grid = positions(kind, (2, 3), inputs, None)
    assert grid.shape == (6, 8) and len(torch.unique(grid, dim=0)) == 6
    line = positions(kind, (), inputs, lengths)
    assert line.shape[-2:] == (6, 8)
    if kind == "spread":  # a caption's positions do not depend on its batch
        torch.testing.assert_close(line[1, :4], spread_positions(4, 8, inputs))


def test_learned_parameters_of_mp():
    encoder = encoder_of(similarity={"similarity": "mp"})
    learned = encoder.model.similarity_parameters()
    assert {"similarity.scale", "similarity.shift"} <= set(encoder.model.trained_state())
    images = encoder.model.images(torch.rand(2, 4, 12), torch.tensor([4, 3])).sets
    texts = encoder.model.texts(*encoder.tokenizer(tiny.CAPTIONS)).sets
    score(images, texts, "mp", **learned).sum().backward()
    assert all(p.grad is not None and p.grad != 0 for p in learned.values())
    with torch.no_grad():
        learned["shift"].fill_(-0.5)
    assert encoder.similarity == {"similarity": "mp", "scale": 1.0, "shift": -0.5}
    assert encoder_of().model.similarity_parameters() == {}


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "mil", "mp", "maxsim"])
def test_every_similarity_trains_the_towers(similarity):
    encoder = encoder_of(similarity={"similarity": similarity})
    images = encoder.model.images(torch.rand(2, 4, 12), torch.tensor([4, 3])).sets
    texts = encoder.model.texts(*encoder.tokenizer(tiny.CAPTIONS)).sets
    learned = encoder.model.similarity_parameters()
    score(images, texts, similarity, **learned).square().sum().backward()
    assert encoder.model.image.projection.fc.weight.grad.abs().sum() > 0
    assert encoder.model.text.encoder.words.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("head", ["set_prediction", "pie_net", "transformer", "pooling"])
@pytest.mark.parametrize("k", [1, 2, 32])
def test_every_head_and_size_of_set(head, k):
    encoder = encoder_of(head=replace(HEAD, head=head, k=k))
    sets = encoder.encode_images(region_features()).values
    assert sets.shape == (3, k, 16)
    torch.testing.assert_close(sets.norm(dim=2), torch.ones(3, k))


def test_pie_net_normalises_the_sum():
    tower = encoder_of(head=replace(HEAD, head="pie_net")).model.image
    values, counts = torch.rand(2, 4, 12), torch.tensor([4, 4])
    sets, slots = tower(values, counts)
    local = Local(tower.projection(values, None), counts)
    pooled = tower.encoder(local, None).pooled
    expected = torch.nn.functional.normalize(tower.norm(pooled[:, None] + slots), dim=-1)
    torch.testing.assert_close(sets, expected)
    assert slots.min() >= 0 and slots.max() <= 1  # sigmoid
