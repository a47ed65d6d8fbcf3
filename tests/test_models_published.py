"""Checkpoints of the published code: its key names and its numbers."""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from divse import DivSE
from divse.data.older_vocabulary import read_words
from divse.data.published_vocabulary import split_words
from divse.models.published import read_published

GOLDEN = np.load(Path(__file__).parent / "golden" / "published_code.npz")
PREFIX = "block_param/"
BLOCK = {
    name.removeprefix(PREFIX): torch.from_numpy(GOLDEN[name])
    for name in GOLDEN.files
    if name.startswith(PREFIX)
}
DIM, WORD_DIM, CHANNELS = 64, 48, 2048
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "does", "n't", "run", "."]
ARGS = {
    "data_name": "coco_butd",
    "arch": "slot",
    "embed_size": DIM,
    "word_dim": WORD_DIM,
    "img_num_embeds": 4,
    "txt_num_embeds": 4,
    "spm_depth": 4,
    "spm_weight_sharing": True,
    "spm_ff_mult": 4.0,
    "spm_1x1": True,
    "spm_pre_norm": True,
    "spm_post_norm": False,
    "spm_last_ln": True,
    "spm_residual_norm": True,
    "spm_activation": "gelu",
    "spm_img_pos_enc_type": "none",
    "spm_txt_pos_enc_type": "sine",
    "img_res_first_fc": True,
    "img_res_pool": "max",
    "img_1x1_dropout": 0.1,
    "gpo_1x1": True,
    "gpo_rnn": True,
    "dropout": 0.1,
    "txt_pooling": "rnn",
    "txt_attention_input": "wemb",
    "loss": "smooth_chamfer",
    "temperature": 16.0,
    "denominator": 2.0,
}


def head_state(side, channels):
    """The golden block under the names of a checkpoint, for texts as it is (48 channels)."""
    state = {}
    for name, tensor in BLOCK.items():
        if channels != WORD_DIM and name.endswith(("to_k.weight", "to_v.weight")):
            tensor = torch.randn(len(tensor), channels) / channels**0.5
        if channels != WORD_DIM and "norm_context" in name:
            tensor = torch.rand(channels)
        names = [name.replace("layers.0.", f"layers.{i}.") for i in range(4)]
        for stored in names if name.startswith("layers.") else [name]:
            state[f"{side}.spm.agg_block.{stored}"] = tensor
    state[f"{side}.spm.residual_norm.weight"] = torch.rand(DIM) + 0.5
    state[f"{side}.spm.residual_norm.bias"] = torch.randn(DIM) / 10
    return state


def published_state():
    torch.manual_seed(0)
    modules = {
        "img_enc.fc": torch.nn.Linear(CHANNELS, DIM),
        "img_enc.mlp.fc1": torch.nn.Linear(DIM, DIM // 2),
        "img_enc.mlp.bn.bn": torch.nn.BatchNorm1d(DIM // 2),
        "img_enc.mlp.fc2": torch.nn.Linear(DIM // 2, DIM),
        "txt_enc.embed": torch.nn.Embedding(len(WORDS) + 1, WORD_DIM),  # the code adds <mask>
        "txt_enc.rnn": torch.nn.GRU(WORD_DIM, DIM, batch_first=True, bidirectional=True),
    }
    modules["img_enc.mlp.bn.bn"].running_mean.normal_()
    state = head_state("img_enc", DIM) | head_state("txt_enc", WORD_DIM)
    for name, module in modules.items():
        state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state, modules


def write(path, state, prefix="module.", **changes):
    args = argparse.Namespace(**(ARGS | changes))
    model = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"args": args, "epoch": 79, "best_score": 430.7, "model": model}, path)
    return path


def reference_block(state, side, inputs, positions=None):
    """The aggregation block as the paper writes it, one sample at a time, no padding."""
    names = {n.removeprefix(f"{side}.spm.agg_block."): t for n, t in state.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], names[f"{name}.weight"], names[f"{name}.bias"])

    def heads(x):
        return x.view(len(x), 4, -1).transpose(0, 1)

    slots = names["latents"]
    attention = "layers.0.0.fn"
    for _ in range(4):
        context = norm(inputs, "layers.0.0.norm_context")
        query = heads(norm(slots, "layers.0.0.norm") @ names[f"{attention}.to_q.weight"].T)
        placed = context if positions is None else context + positions
        key = heads(placed @ names[f"{attention}.to_k.weight"].T)
        value = heads(context @ names[f"{attention}.to_v.weight"].T)
        weights = (query @ key.mT * 512**-0.5).softmax(dim=1)
        weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-7)
        mixed = (weights @ value).transpose(0, 1).flatten(1)
        slots = slots + F.linear(
            mixed, names[f"{attention}.to_out.0.weight"], names[f"{attention}.to_out.0.bias"]
        )
        hidden = norm(slots, "layers.0.2.norm")
        for layer in ("0", "3"):
            net = f"layers.0.2.fn.net.{layer}"
            hidden = F.linear(hidden, names[f"{net}.weight"], names[f"{net}.bias"])
            hidden = F.gelu(hidden) if layer == "0" else hidden
        slots = slots + hidden
    return norm(slots, "last_layer.0")


def finish(state, side, slots, common):
    weight, bias = (state[f"{side}.spm.residual_norm.{name}"] for name in ("weight", "bias"))
    return F.normalize(slots + F.layer_norm(common, (DIM,), weight, bias), dim=1)


def sine(length):
    """Positions of the published code: from 0 to 2 pi over the caption."""
    place = np.arange(1, length + 1) / (length + 1e-6) * 2 * np.pi
    rate = 10000.0 ** (2 * (np.arange(WORD_DIM) // 2) / WORD_DIM)
    angle = place[:, None] / rate
    waves = np.where(np.arange(WORD_DIM) % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.tensor(waves, dtype=torch.float32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    state, modules = published_state()
    (folder / "vocab.json").write_text(vocabulary_json())
    path = write(folder / "ckpt.pth.tar", state)
    return DivSE.from_published(path, read_words(folder / "vocab.json")), state, modules


def vocabulary_json():
    ids = {word: i for i, word in enumerate(WORDS)}
    words = {i: word for word, i in ids.items()}
    return json.dumps({"word2idx": ids, "idx2word": words, "idx": len(ids)})


def test_golden_block_comes_through_the_loader(loaded):
    head = loaded[0].model.text.head.eval()
    output = head(torch.from_numpy(GOLDEN["block_inputs"]))
    torch.testing.assert_close(output, torch.from_numpy(GOLDEN["block_output"]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_pictures_are_embedded_as_published(loaded):
    encoder, state, modules = loaded
    regions = np.random.default_rng(0).random((3, 36, CHANNELS)).astype(np.float32)
    sets = encoder.encode_images(list(regions)).values
    for values, ours in zip(torch.from_numpy(regions), sets, strict=True):
        first = modules["img_enc.fc"](values)
        hidden = modules["img_enc.mlp.bn.bn"].eval()(modules["img_enc.mlp.fc1"](first))
        local = modules["img_enc.mlp.fc2"](hidden.relu()) + first
        slots = reference_block(state, "img_enc", local)
        expected = finish(state, "img_enc", slots, local.amax(dim=0))
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_captions_are_embedded_as_published(loaded):
    encoder, state, modules = loaded
    captions = ["A dog doesn't run.", "A dog"]
    ids = [[1, 4, 5, 6, 7, 8, 9, 2], [1, 4, 5, 2]]  # with <start> and <end>
    sets = encoder.encode_texts(captions).values  # one batch: padding must change nothing
    for row, ours in zip(ids, sets, strict=True):
        words = modules["txt_enc.embed"](torch.tensor(row))
        _, final = modules["txt_enc.rnn"](words[None])
        slots = reference_block(state, "txt_enc", words, sine(len(row)))
        expected = finish(state, "txt_enc", slots, final.mean(dim=0)[0])
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_it_becomes_a_model_folder(loaded, tmp_path):
    encoder, _, _ = loaded
    assert encoder.similarity == {"similarity": "smooth_chamfer", "alpha": 16.0, "log_mean": False}
    encoder.save_pretrained(tmp_path)
    again = DivSE.from_pretrained(tmp_path)
    assert again.fingerprint == encoder.fingerprint
    captions = ["A dog doesn't run."]
    assert torch.equal(again.encode_texts(captions).values, encoder.encode_texts(captions).values)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_a_checkpoint_with_bert(tmp_path, pooling):
    from transformers import AutoModel

    folder = tiny.write_bert(tmp_path / "bert")
    bert, linear = AutoModel.from_pretrained(folder), torch.nn.Linear(16, DIM)
    state = {n: t for n, t in published_state()[0].items() if n.startswith("img_enc")}
    state |= head_state("txt_enc", DIM)
    state |= {f"txt_enc.bert.{name}": tensor for name, tensor in bert.state_dict().items()}
    state |= {f"txt_enc.linear.{name}": tensor for name, tensor in linear.state_dict().items()}
    recipe = {"use_bert": True, "txt_pooling": pooling, "spm_txt_pos_enc_type": "none"}
    path = write(tmp_path / "x.tar", state, **recipe)
    encoder = DivSE.from_published(path, bert=folder)
    captions = ["a red circle", "a large blue star on the left"]
    for caption, ours in zip(captions, encoder.encode_texts(captions).values, strict=True):
        tokens, _ = encoder.tokenizer([caption])
        local = linear(bert(tokens).last_hidden_state[0])
        common = local[0] if pooling == "cls" else local.amax(dim=0)
        slots = reference_block(state, "txt_enc", local)
        expected = finish(state, "txt_enc", slots, common)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_key_names_of_other_recipes(tmp_path, prefix):
    """ResNet or ResNeXt with BERT; PIE-Net."""
    names = {
        "img_enc.cnn.layer1.0.conv1.weight": "image.encoder.backbone.network.layer1.0.conv1.weight",
        "img_enc.fc.weight": "image.projection.fc.weight",
        "txt_enc.bert.encoder.layer.0.output.dense.bias": (
            "text.encoder.backbone.encoder.layer.0.output.dense.bias"
        ),
        "txt_enc.linear.weight": "text.projection.fc.weight",
        "img_enc.spm.attention.w_1.weight": "image.head.hidden.weight",
        "img_enc.spm.attention.w_2.weight": "image.head.maps.weight",
        "txt_enc.spm.fc.bias": "text.head.out.bias",
        "txt_enc.spm.layer_norm.bias": "text.norm.bias",
    }
    state = {name: torch.zeros(1) for name in names}
    recipe = {"data_name": "f30k", "cnn_type": "resnext_wsl", "use_bert": True, "arch": "pvse"}
    path = write(tmp_path / "x.tar", state, prefix, **recipe, txt_pooling="max", gpo_1x1=False)
    published = read_published(path)
    assert set(published.weights) == set(names.values())
    assert published.config.image.name == "resnext101_32x8d.fb_wsl_ig1b_ft_in1k"
    assert (published.config.text.encoder, published.config.text.pool) == ("transformer", ["max"])
    assert published.config.model.head == "pie_net"
    assert published.config.image.crop_pct == 0  # evaluated on whole pictures of 512 x 512


def test_resnet_is_evaluated_on_centre_crops(tmp_path):
    recipe = {"data_name": "coco", "cnn_type": "resnet152", "crop_size": 224, "gpo_1x1": False}
    path = write(tmp_path / "x.tar", {"img_enc.fc.weight": torch.zeros(1)}, **recipe)
    image = read_published(path).config.image
    assert (image.name, image.size, image.size / image.crop_pct) == ("resnet152", 224, 256)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_nothing_in_the_file_is_run(tmp_path, capsys):
    path = tmp_path / "x.tar"
    torch.save({"args": argparse.Namespace(), "model": {}, "epoch": Harmful()}, path)
    with pytest.raises(ValueError, match="more than tensors and settings"):
        read_published(path)
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ValueError, match="more than tensors and settings"):
        read_published(path)
    assert "printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spm_post_norm": True}, "spm_post_norm True"),
        ({"spm_activation": "geglu"}, "spm_activation 'geglu'"),
        ({"loss": "mp"}, "never saved"),
        ({"gpo_rnn": False}, "--gpo_rnn"),
        ({"loss": "triplet"}, "loss 'triplet'"),
        ({"data_name": "coco"}, r"\(args\) lack cnn_type"),
    ],
)
def test_variants_that_are_refused(tmp_path, changes, message):
    path = write(tmp_path / "x.tar", {"img_enc.fc.weight": torch.zeros(1)}, **changes)
    with pytest.raises(ValueError, match=message):
        read_published(path)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_files_that_are_cut_short(tmp_path, share):
    path = write(tmp_path / "x.tar", published_state()[0])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"x.tar is no checkpoint .* is it whole"):
        read_published(path)


def test_weights_that_are_missing_are_named(tmp_path):
    state = published_state()[0]
    for name in ("img_enc.fc.weight", "txt_enc.spm.agg_block.layers.0.2.fn.net.3.bias"):
        some = {key: tensor for key, tensor in state.items() if key != name}
        path = write(tmp_path / "x.tar", some)
        with pytest.raises(ValueError, match=r"x.tar do not fit its settings: .*key"):
            DivSE.from_published(path, WORDS)


def test_missing_things(tmp_path, loaded):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_published(tmp_path / "none")
    torch.save({"weights": 1}, tmp_path / "x")
    with pytest.raises(ValueError, match="no args and no model"):
        read_published(tmp_path / "x")
    path = write(tmp_path / "y", published_state()[0])
    with pytest.raises(ValueError, match="needs the words"):
        DivSE.from_published(path)
    with pytest.raises(ValueError, match="embeds 11 words, the vocabulary has 5"):
        DivSE.from_published(path, WORDS[:5])


def test_words_are_split_as_nltk_does():
    assert split_words("A t-shirt, the man's and/or dogs' ... didn't it?") == (
        ["a", "t-shirt", ",", "the", "man", "'s", "and/or", "dogs", "'", "...", "did", "n't", "it"]
        + ["?"]
    )
