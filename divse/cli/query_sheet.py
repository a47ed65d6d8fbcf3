"""The contact sheet of `divse-search query`: answers as rows of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divse.cli.contact_sheet import ContactSheet, SheetRow, Tile
from divse.cli.output import Answer, label
from divse.search.gallery import Gallery

MOST_ROWS = 50


class QuerySheet:
    """Takes answers and draws the first of them; refuses at once what could not be drawn."""

    def __init__(self, path: Path, gallery: Gallery) -> None:
        from PIL import Image

        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{path}: a contact sheet is a picture file such as found.png")
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: there is no such folder for the contact sheet")
        if not {"path", "text"} & set(gallery.columns):
            raise ValueError(
                f"{gallery.path} has no column path (of pictures) or text that could be drawn: "
                "build it with --images or --texts, or give a column path"
            )
        self._path, self._gallery = path, gallery
        self._rows: list[SheetRow] = []

    def take(self, found: Answer) -> None:
        """Keep an answer for the sheet."""
        if len(self._rows) < MOST_ROWS and "hits" in found:
            tiles = [self._tile(hit) for hit in found["hits"]]
            query = found["query"]
            self._rows.append(SheetRow(tiles, text=label(query), image=query.get("image")))

    def save(self) -> None:
        """Draw the sheet."""
        if not self._rows:
            raise ValueError(f"{self._path}: no query was answered, so there is nothing to draw")
        ContactSheet(self._rows).save(self._path)

    def _tile(self, hit: dict[str, Any]) -> Tile:
        return Tile(
            caption=str(hit.get("caption") or hit.get("text") or hit["id"]),
            score=hit["score"],
            image=self._picture(hit.get("path")),
            explanation=hit.get("explain"),
        )

    def _picture(self, path: str | None) -> Path | None:
        """The picture's file; relative paths count from the gallery's folder, then from here."""
        if path is None:
            return None
        beside = self._gallery.path / path
        return beside if beside.is_file() else Path(path)
