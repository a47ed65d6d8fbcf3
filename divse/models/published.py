"""Checkpoints of the paper's published code: its file layout and key names -> ours.

The file is what torch.save wrote of {"args", "epoch", "best_score", "model"}: the settings as an
argparse.Namespace, the weights under `img_enc.` and `txt_enc.` (`module.` before them, if several
GPUs were used). It is read by torch's restricted unpickler, which makes tensors, plain containers
and the Namespace, and nothing else.

Where nothing is padded, the outputs are those of the published code. Where captions of different
lengths share a batch they are not, on purpose: there its attention falls on padding.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig

# our names for theirs, in the order in which they are replaced
RENAMED = (
    (r"^module\.", ""),
    (r"^img_enc\.cnn\.", "image.encoder.backbone.network."),
    (r"^img_enc\.", "image."),
    (r"^txt_enc\.embed\.", "text.encoder.words."),
    (r"^txt_enc\.rnn\.", "text.encoder.gru."),
    (r"^txt_enc\.bert\.", "text.encoder.backbone."),
    (r"^txt_enc\.linear\.", "text.fc."),
    (r"^txt_enc\.", "text."),
    (r"^(image|text)\.fc\.", r"\1.projection.fc."),
    (r"^(image|text)\.mlp\.fc1\.", r"\1.projection.mlp.0."),
    (r"^(image|text)\.mlp\.bn\.bn\.", r"\1.projection.mlp.1."),
    (r"^(image|text)\.mlp\.fc2\.", r"\1.projection.mlp.3."),
    (r"\.spm\.residual_norm\.", ".norm."),
    (r"\.spm\.layer_norm\.", ".norm."),  # PIE-Net
    (r"\.spm\.attention\.w_1\.", ".head.hidden."),
    (r"\.spm\.attention\.w_2\.", ".head.maps."),
    (r"\.spm\.fc\.", ".head.out."),
    (r"\.spm\.agg_block\.", ".head."),
)
# of the set-prediction module, as golden files and checkpoints name it
BLOCK = (
    (r"(^|\.)latents$", r"\1slots"),
    (r"(^|\.)last_layer\.0\.", r"\1norm."),
    (r"(^|\.)layers\.(\d+)\.0\.fn\.to_q\.", r"\1blocks.\2.attention.query."),
    (r"(^|\.)layers\.(\d+)\.0\.fn\.to_k\.", r"\1blocks.\2.attention.key."),
    (r"(^|\.)layers\.(\d+)\.0\.fn\.to_v\.", r"\1blocks.\2.attention.value."),
    (r"(^|\.)layers\.(\d+)\.0\.fn\.to_out\.0\.", r"\1blocks.\2.attention.out."),
    (r"(^|\.)layers\.(\d+)\.0\.norm\.", r"\1blocks.\2.norm_slots."),
    (r"(^|\.)layers\.(\d+)\.0\.norm_context\.", r"\1blocks.\2.norm_inputs."),
    (r"(^|\.)layers\.(\d+)\.2\.fn\.net\.", r"\1blocks.\2.feedforward."),
    (r"(^|\.)layers\.(\d+)\.2\.norm\.", r"\1blocks.\2.norm_feedforward."),
)
SIMILARITY = {"smooth_chamfer": "smooth_chamfer", "chamfer": "chamfer", "max": "mil", "mp": "mp"}
# (setting, what divse reads, why not otherwise)
EXPECTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("arch", ("slot", "pvse"), "the head"),
    ("loss", tuple(SIMILARITY), "the similarity"),
    ("spm_1x1", (True,), "local features that are not projected"),
    ("spm_post_norm", (False,), "norms after the blocks"),
    ("spm_pre_norm", (True,), "blocks without norms before them"),
    ("spm_last_ln", (True,), "slots without a last layer norm"),
    ("spm_residual_norm", (True,), "a global feature without layer norm"),
    ("spm_residual_fc", (False,), "a layer behind the set"),
    ("spm_activation", ("gelu",), "the activation of the feed-forward layer"),
    ("query_slot", (False,), "sampled slots"),
    ("img_res_first_fc", (True,), "a global feature of unprojected inputs"),
    ("img_res_last_fc", (False,), "a second projection of the global feature"),
    ("img_res_first_pool", (False,), "pooling before the projection"),
    ("img_res_last_pool", (False,), "pooling behind the second projection"),
    ("txt_pooling", ("rnn", "cls", "max"), "pooling of texts"),
    ("txt_pooling_fc", (False,), "a layer behind the pooled text"),
    ("sep_bert_fc", (False,), "a second projection of BERT"),
    ("temperature_txt_scale", (1.0,), "an alpha of its own for texts"),
    ("denominator", (2.0,), "a scaled similarity"),
)


class Published(NamedTuple):
    """What a checkpoint holds: settings of the towers, weights by our names, similarity."""

    config: TwoTowerConfig
    weights: dict[str, Tensor]
    similarity: dict[str, Any]
    words: int


def read_published(path: str | Path, heads: int = 0) -> Published:
    """Read a checkpoint (`ckpt.pth.tar`, `model_best.pth.tar`).

    Args:
        path: The file.
        heads: Attention heads, which stand in the code alone and not in its files: 0 takes 8 for
            ResNeXt with BERT and 4 otherwise, of 2048 dimensions together.

    """
    content = unpickle(Path(path))
    args, state = content["args"], content["model"]
    check_settings(args)
    weights = rename(state)
    config = settings(args, weights, heads or published_heads(args))
    name = SIMILARITY[args["loss"]]
    similarity: dict[str, Any] = {"similarity": name}
    if name == "smooth_chamfer":
        similarity |= {"alpha": float(args.get("temperature", 1.0)), "log_mean": False}
    if name == "mp":
        raise ValueError(
            "the published code never saved the learned parameters of MP (loss mp): the checkpoint "
            "does not hold the similarity that it was trained with"
        )
    words = len(weights.get("text.encoder.words.weight", ()))
    return Published(config, weights, similarity, words)


def unpickle(path: Path) -> dict[str, Any]:
    """Read the file without running anything in it -> {"args": {...}, "model": {...}}."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and settings, and is not read: {error}"
        ) from None
    except (RuntimeError, EOFError, KeyError) as error:  # of a file that torch.save did not write
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(f"{path} is no checkpoint ({reason:.120}): is it whole?") from None
    missing = {"args", "model"} - (set(content) if isinstance(content, dict) else set())
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(sorted(missing))}; expected a checkpoint of the "
            "published code, with args, epoch, best_score and model"
        )
    args = content["args"]
    return {"args": args if isinstance(args, dict) else vars(args), "model": content["model"]}


def check_settings(args: Mapping[str, Any]) -> None:
    """Refuse variants that never were in the paper, and settings that say too little."""
    needed = ["data_name", "img_num_embeds", "loss"]
    needed += [] if "butd" in args.get("data_name", "") else ["cnn_type"]
    missing = [name for name in needed if name not in args]
    if missing:
        raise ValueError(f"the settings in this checkpoint (args) lack {', '.join(missing)}")
    pie_net = args.get("arch") == "pvse"  # the set-prediction module's settings mean nothing there
    for name, known, what in EXPECTED:
        value = args.get(name, known[0])
        if pie_net and name.startswith(("spm_", "query_")) and name != "spm_1x1":
            continue
        if value not in known:
            raise ValueError(
                f"this checkpoint was trained with {name} {value!r} ({what}); divse reads "
                f"{' or '.join(map(repr, known))}"
            )


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names; blocks that share their weights come once (theirs stand T times)."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, ours in (*RENAMED, *BLOCK):
            name = re.sub(pattern, ours, name)
        if not name.endswith("position_ids"):
            renamed[name] = tensor
    return without_repeats(renamed)


def without_repeats(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the later blocks of heads whose blocks all have the weights of the first."""
    later = {n: re.sub(r"(head\.blocks\.)\d+", r"\g<1>0", n) for n in weights}
    repeated = {n for n, first in later.items() if n != first}
    if not all(
        later[n] in weights and torch.equal(weights[n], weights[later[n]]) for n in repeated
    ):
        return dict(weights)
    return {n: t for n, t in weights.items() if n not in repeated}


def settings(args: Mapping[str, Any], weights: Mapping[str, Tensor], heads: int) -> TwoTowerConfig:
    """Settings of the towers that hold these weights."""
    set_prediction = args.get("arch", "slot") == "slot"
    dim = int(args.get("embed_size", 1024))
    query = weights.get("image.head.blocks.0.attention.query.weight")
    head = HeadConfig(
        head="set_prediction" if set_prediction else "pie_net",
        k=int(args["img_num_embeds"]),
        dim=dim,
        blocks=int(args.get("spm_depth", 1)),
        shared=bool(args.get("spm_weight_sharing", False)),
        heads=heads,
        head_dim=512 if query is None else len(query) // heads,
        feedforward=int(args.get("spm_ff_mult", 2)),
        dropout=float(args.get("dropout", 0.0)),
        positions="spread" if args.get("spm_txt_pos_enc_type") == "sine" else "none",
    )
    return TwoTowerConfig(image_settings(args), text_settings(args, dim), head)


def published_heads(args: Mapping[str, Any]) -> int:
    """Attention heads of a recipe: 8 x 256 for ResNeXt with BERT, else 4 x 512."""
    return 8 if args.get("cnn_type") == "resnext_wsl" and args.get("use_bert") else 4


def image_settings(args: Mapping[str, Any]) -> ImageConfig:
    """Settings of the image encoder."""
    shared = ImageConfig(
        projection="local_mlp" if args.get("gpo_1x1") else "local",
        projection_dropout=float(args.get("img_1x1_dropout", 0.0)),
        pool=["max" if args.get("img_res_pool") == "max" else "mean"],
        positions=args.get("spm_img_pos_enc_type", "none") == "sine",
    )
    if "butd" in args["data_name"]:
        return replace(shared, encoder="regions")
    names = {"resnext_wsl": "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "resnet152": "resnet152"}
    name = names.get(args["cnn_type"], args["cnn_type"])
    size, crop_pct = int(args.get("crop_size", 224)), 0.875 if name == "resnet152" else 0.0
    return replace(shared, encoder="timm", name=name, size=size, crop_pct=crop_pct)


def text_settings(args: Mapping[str, Any], dim: int) -> TextConfig:
    """Settings of the text encoder."""
    dropout = 0.0 if args.get("rnn_no_dropout") else float(args.get("dropout", 0.0))
    if args.get("use_bert"):
        pool = "first" if args.get("txt_pooling") == "cls" else "max"
        return TextConfig(
            encoder="transformer",
            path="hub:google-bert/bert-base-uncased",
            pool=[pool],
            projection="local",
        )
    if not args.get("gpo_rnn") or args.get("txt_pooling", "rnn") != "rnn":
        raise ValueError("of Bi-GRUs divse reads those with --gpo_rnn and --txt_pooling rnn")
    states = args.get("txt_attention_input", "wemb") != "wemb"
    if states:
        raise ValueError("of Bi-GRUs divse reads those with --txt_attention_input wemb")
    return TextConfig(
        encoder="gru",
        word_dim=int(args.get("word_dim", 300)),
        hidden=dim,
        projection="none",
        word_dropout=dropout,
        global_dropout=dropout,
    )
