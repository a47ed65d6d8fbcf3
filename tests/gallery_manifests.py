"""Manifests that tests change and sign again."""

import json

from divse.search.durable import checksum_bytes


def signed(content):
    """A manifest's bytes with the checksum that fits."""
    content.pop("checksum", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "checksum": checksum_bytes(text.encode())}).encode()


def edit_manifest(folder, sign=True, **changes):
    """Change a gallery's manifest, with the checksum that fits or without."""
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_bytes(signed(content) if sign else json.dumps(content).encode())


def segment(folder):
    """The folder of a gallery's only segment."""
    return next(folder.glob("segment-*"))
