"""Model folders, the hub's conventions, and the fingerprint that galleries carry."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from divse import DivSE
from divse.data.pictures import fit
from divse.encoder import build_model, build_tokenizer
from divse.encoder.folder import embedding_settings
from divse.models import hub
from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig

CONFIG = TwoTowerConfig(
    ImageConfig(width=8, size=16),
    TextConfig(word_dim=8, hidden=8),
    HeadConfig(k=2, dim=8, blocks=2, heads=2, head_dim=4),
)


def encoder_of(config=CONFIG, similarity=None):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.text, tiny.CAPTIONS)
    return DivSE(build_model(config, tokenizer, similarity).eval(), config, tokenizer, similarity)


def changed(side, **values):
    return replace(CONFIG, **{side: replace(getattr(CONFIG, side), **values)})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"k": "4"}, "model.k: got '4' (str), expected int"),
        ("image", {"positions": 1}, "image.positions: got 1 (int), expected bool"),
        ("text", {"pool": "mean"}, "text.pool: got 'mean' (str), expected list"),
        ("similarity", {"alpha": "16"}, "similarity.alpha: got '16' (str), expected float"),
        ("similarity", {"scale": None}, "similarity.scale: got None (NoneType), expected float"),
        ("similarity", [], "similarity: got [] (list), expected dict"),
    ],
)
def test_values_of_a_wrong_type_are_named(tmp_path, section, values, message):
    encoder_of().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content[section] = content[section] | values if values else values
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as refused:
        DivSE.from_pretrained(tmp_path)
    assert str(refused.value) == f"{file}: {message}"


# settings that change embeddings but not the shapes of the weights
@pytest.mark.parametrize(
    "config",
    [
        changed("text", max_length=3),
        changed("image", size=24),
        changed("image", crop_pct=0.875),
        changed("image", positions=False),
        changed("model", positions="spread"),
        changed("model", heads=1, head_dim=8),
        changed("model", blocks=3),
    ],
)
def test_fingerprint_follows_every_setting(config):
    other = encoder_of(config)
    other.model.load_state_dict(encoder_of().model.state_dict())
    assert other.fingerprint != encoder_of().fingerprint


def test_galleries_of_models_older_than_centre_crops_still_fit(tmp_path):
    encoder = encoder_of()
    assert "crop_pct" not in embedding_settings(encoder.config.image)
    encoder.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["image"].pop("crop_pct") == 0
    (tmp_path / "config.json").write_text(json.dumps(content))
    older = DivSE.from_pretrained(tmp_path)
    assert older.fingerprint == encoder.fingerprint and older.config.image.crop_pct == 0


def test_a_model_folder_keeps_how_pictures_become_square(tmp_path):
    encoder = encoder_of(changed("image", crop_pct=0.5))
    encoder.save_pretrained(tmp_path)
    loaded = DivSE.from_pretrained(tmp_path)
    assert loaded.config.image.crop_pct == 0.5 and loaded.fingerprint == encoder.fingerprint
    picture = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    centre = fit(picture, 16, 0.5)  # a square of the right size would be cut again
    values = loaded.encode_images([picture]).values
    pixels = torch.from_numpy(centre.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = loaded.model.images(pixels).sets
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)
    assert (values - encoder_of().encode_images([picture]).values).abs().max() > 1e-3


def test_fingerprint_of_settings_that_only_some_encoders_have():
    encoder, seen = encoder_of(), set()
    for changes in (
        {},
        {"pool": ["max"]},
        {"level": 1},
        {"pool": ["mean", "detail"], "level": 1},
        {"projection": "local"},
        {"options": {"layers": [1]}},
    ):
        config = changed("image", encoder="timm", **changes)
        seen.add(DivSE(encoder.model, config, encoder.tokenizer).fingerprint)
    for changes in ({"inputs": "states"}, {"pool": ["last"]}, {"projection": "none"}):
        seen.add(DivSE(encoder.model, changed("text", **changes), encoder.tokenizer).fingerprint)
    assert len(seen) == 9


def test_fingerprint_ignores_what_only_training_reads():
    encoder = encoder_of()
    for side in ("image", "text", "model"):
        for field in fields(getattr(CONFIG, side)):
            if field.metadata["training_only"]:
                value = {str: "x", float: 0.25, bool: True, int: 3}[type(field.default)]
                config = changed(side, **{field.name: value})
                same = DivSE(encoder.model, config, encoder.tokenizer)
                assert same.fingerprint == encoder.fingerprint, field.name


def test_fingerprint_follows_the_rules_of_the_tokenizer(tmp_path):
    text = TextConfig(encoder="transformer", path=str(tiny.write_bert(tmp_path)))
    encoder = encoder_of(replace(CONFIG, text=text))
    before = encoder.fingerprint
    encoder.encode_texts(tiny.CAPTIONS)  # truncation is set by this call
    assert encoder.fingerprint == before
    backend = encoder.tokenizer.tokenizer.backend_tokenizer
    backend.normalizer = type(backend.normalizer)(lowercase=False)
    assert encoder.fingerprint != before


def test_learned_similarity_is_saved(tmp_path):
    encoder = encoder_of(similarity={"similarity": "mp"})
    with torch.no_grad():
        encoder.model.similarity_parameters()["scale"].fill_(7)
    encoder.save_pretrained(tmp_path)
    loaded = DivSE.from_pretrained(tmp_path)
    assert loaded.similarity == {"similarity": "mp", "scale": 7.0, "shift": 0.0}
    assert loaded.model.similarity_parameters()["scale"] == 7
    assert loaded.record(tmp_path)["similarity"]["scale"] == 7.0


def test_the_model_card(tmp_path):
    encoder = encoder_of(changed("text", vectors=""), {"similarity": "chamfer"})
    encoder.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    header = card.split("---")[1]
    assert "library_name: divse" in header and "image-text" in header
    assert "sets of 2 unit vectors\nof 8 dimensions" in card and "similarity chamfer" in card
    settings = json.loads(card.split("```json")[1].split("```")[0])
    assert settings["model"]["k"] == 2 and "weights" not in settings["image"]
    compile(card.split("```python")[1].split("```")[0], "card", "exec")
    encoder.save_pretrained(tmp_path, card="# Mine\n")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_no_path_of_this_machine_is_published(tmp_path):
    config = replace(
        CONFIG,
        image=ImageConfig(**plain(tiny.frozen_image(tmp_path / "secret"))),
        text=TextConfig(encoder="transformer", path=str(tiny.write_bert(tmp_path / "secret"))),
    )
    encoder_of(config).save_pretrained(tmp_path / "model")
    for file in (tmp_path / "model").rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "secret" not in file.read_text(), file


def plain(settings):
    values = {name.removeprefix("image__"): value for name, value in settings.items()}
    return values | {"weights": str(values["weights"])}


class FakeHub:
    """Keeps repositories as folders, as the hub's client would on the other side."""

    def __init__(self, root):
        self.root = root

    def HfApi(self):  # noqa: N802
        def create_repo(name, private, exist_ok):
            (self.root / name).mkdir(parents=True, exist_ok=exist_ok)
            return f"https://hub/{name}"

        def upload_folder(repo_id, folder_path, commit_message):
            for file in Path(folder_path).iterdir():
                (self.root / repo_id / file.name).write_bytes(file.read_bytes())

        return SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)

    def snapshot_download(self, name, revision=None):
        if not (self.root / name).is_dir():
            raise OSError(f"404 for {name}")
        return str(self.root / name)


def test_to_the_hub_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hugging_face_hub", lambda: FakeHub(tmp_path))
    encoder = encoder_of()
    assert encoder.push_to_hub("me/sets") == "https://hub/me/sets"
    loaded = DivSE.from_pretrained("me/sets")
    assert loaded.fingerprint == encoder.fingerprint
    pictures = [np.zeros((16, 16, 3), np.uint8)]
    ours, theirs = encoder.encode_images(pictures).values, loaded.encode_images(pictures).values
    assert torch.equal(ours, theirs)
    with pytest.raises(FileNotFoundError, match="404"):
        DivSE.from_pretrained("me/other")
    with pytest.raises(ValueError, match="OWNER/NAME"):
        encoder.push_to_hub("sets")


def test_a_run_keeps_its_frozen_weights_when_it_is_pushed(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hugging_face_hub", lambda: FakeHub(tmp_path))
    config = replace(CONFIG, image=ImageConfig(**plain(tiny.frozen_image(tmp_path / "w"))))
    encoder = encoder_of(config)
    encoder.save_pretrained(tmp_path / "run")
    encoder.push_to_hub("me/frozen")
    assert (tmp_path / "me/frozen/backbones.safetensors").is_file()
    encoder.save_pretrained(tmp_path / "run")
    assert DivSE.from_pretrained(tmp_path / "run").fingerprint == encoder.fingerprint


def write_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(content)))


def cut(file):
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "config.json"), "config.json is not JSON .* is it whole"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors cannot be read .* is it whole"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors cannot be read"),
        (lambda f: (f / "vocabulary.json").unlink(), "has no vocabulary.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: write_config(f, lambda c: []), "config.json has no format, image, model"),
        (lambda f: write_config(f, lambda c: c | {"format": 9}), "has format 9"),
        (lambda f: write_config(f, lambda c: c | {"image": {"new": 1}}), "'new'.* by a newer one"),
        (
            lambda f: write_config(f, lambda c: c | {"image": c["image"] | {"encoder": "new"}}),
            "'new'.* by a newer one",
        ),
        (
            lambda f: write_config(f, lambda c: c | {"model": c["model"] | {"k": 3}}),
            r"do not fit its settings: size mismatch for image.head.slots",
        ),
    ],
)
def test_damaged_folders_are_refused_with_a_sentence(tmp_path, damage, message):
    encoder_of().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        DivSE.from_pretrained(tmp_path)


def test_frozen_weights_that_are_gone_are_named(tmp_path):
    settings = tiny.frozen_image(tmp_path)
    image = {name.removeprefix("image__"): str(value) for name, value in settings.items()}
    image |= {"size": 32, "frozen": True}
    config = replace(CONFIG, image=ImageConfig(**image))
    encoder_of(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "backbones.safetensors").unlink()
    with pytest.raises(ValueError, match=r"Missing key.*image.encoder.backbone"):
        DivSE.from_pretrained(tmp_path / "model")
