"""Model folders and the Hugging Face hub: download, upload, and the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from divse.models.config import TwoTowerConfig

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
CARD = """---
library_name: divse
pipeline_tag: feature-extraction
tags: [retrieval, multi-vector, image-text, divse]
---

# {title}

A two-tower model that embeds pictures{note} and captions as sets of {k} unit vectors
of {dim} dimensions.

| | |
|---|---|
| images | {image} |
| texts | {text} |
| head | {head} |
| similarity | {similarity} |

```python
from divse import DivSE, score

model = DivSE.from_pretrained("THIS MODEL")
images = model.encode_images({images})
texts = model.encode_texts(["a caption"])
print(score(texts, images, **model.similarity))
```

## Data, figures and limits

Say here what it was trained and evaluated on, with which command, and what it must not be used for.
The weights of its backbones keep the licences of their owners.

## Settings

```json
{settings}
```
"""


def download(name: str | Path, needed: str, revision: str | None = None) -> Path:
    """Return a model folder: `name` if it is one, else OWNER/NAME fetched from the hub."""
    folder = Path(name)
    if (folder / needed).is_file() or folder.exists() or not REPOSITORY.fullmatch(str(name)):
        return folder
    hub = hugging_face_hub()
    try:
        return Path(hub.snapshot_download(str(name), revision=revision))
    except Exception as error:  # the hub has a class for every way to fail
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{name} is no folder here, nor could the Hugging Face hub be asked for it: {reason}"
        ) from None


def upload(folder: Path, name: str, private: bool) -> str:
    """Put a model folder into the repository OWNER/NAME, made if need be; return its address."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"push_to_hub: got {name!r}, expected OWNER/NAME")
    api = hugging_face_hub().HfApi()
    address = str(api.create_repo(name, private=private, exist_ok=True))
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a divse model")
    return address


def hugging_face_hub() -> Any:
    """Import huggingface_hub, or say how to get it."""
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError('the hub needs huggingface_hub: pip install "divse[hub]"') from None
    return huggingface_hub


def model_card(config: TwoTowerConfig, similarity: Mapping[str, Any], title: str = "") -> str:
    """Write the text of README.md: what the model is and how to use it; figures are the user's."""
    sides = {name: asdict(getattr(config, name)) for name in ("image", "text", "model")}
    image, text, head = sides["image"], sides["text"], sides["model"]
    for name in ("weights", "path", "vectors"):  # paths of the machine that trained it
        image.pop(name, None)
        text.pop(name, None)
    regions = image["encoder"] == "regions"
    if image["encoder"] == "transformer":
        image.pop("name")
    return CARD.format(
        title=title or f"Sets of {head['k']} x {head['dim']}",
        k=head["k"],
        dim=head["dim"],
        image=" ".join(filter(None, (image["encoder"], image.get("name")))),
        text=text["encoder"],
        head=head["head"],
        similarity=", ".join(f"{name} {value}" for name, value in similarity.items()) or "any",
        images="[features]" if regions else '["picture.jpg"]',
        note=" of regions, as arrays (R, C) of features," if regions else "",
        settings=json.dumps(sides, indent=2),
    )
