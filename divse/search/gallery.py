"""A gallery: embedding sets in a folder, with ids and columns, read through memory maps.

    gallery/
        manifest.json          what the gallery is; the only file that is ever replaced
        segment-000000-…/      immutable: embeddings.npy, offsets.npy (ragged), rows.arrow, codes
        index-…/               what was trained of the prefilter's index, if there is one
        writer.lock            held by the one process that writes

Everything can be read with numpy and pyarrow alone; nothing is ever unpickled. The format is
specified in docs/gallery-format.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from divse.search import changes
from divse.search.export import export
from divse.search.intake import SetsSource
from divse.search.manifest import DTYPES, Manifest
from divse.search.snapshot import Snapshot
from divse.search.writing import NewRows, Progress


class Gallery(Snapshot):
    """N sets of unit vectors on disk, opened for reading; see `create`, `open` and `add`.

    A gallery stays at the state it was opened in. Every change is made to the state on disk, by one
    writer at a time, and returns the gallery in its new state.
    """

    @classmethod
    def create(
        cls,
        path: str | Path,
        sets: SetsSource,
        ids: Iterable[Any] | None = None,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        dtype: str = "float16",
        codes: bool = True,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Gallery:
        """Write a new gallery.

        Args:
            path: a folder that does not exist yet, is empty, or holds the rest of a killed build.
            sets: EmbeddingSets, an array (N, K, D), or an iterator of them (any size in all). The
                gallery is ragged if the first block has lengths, else all sets have K elements.
            ids: one string or integer for each set; None numbers them.
            columns: more values for each set, by name, of any Arrow type.
            dtype: "float16" or "float32", of the stored elements.
            codes: store int8 codes with their residuals beside the embeddings, for certified scans.
            metadata: anything that JSON can hold, such as the model's fingerprint.
            overwrite: replace a gallery that is there; it stays until the new one is complete.
            progress: called with the number of sets written at each step.
        """
        folder = Path(path)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected {' or '.join(DTYPES)}")
        known = json.loads(
            json.dumps(dict(metadata or {}), allow_nan=False)
        )  # as JSON will give it back
        empty = Manifest(dtype, "", 0, "", {}, metadata=known, codes=codes)
        new = NewRows(sets, ids, columns, progress)
        return cls._of(changes.create(folder, empty, new, overwrite))

    @classmethod
    def _of(cls, snapshot: Snapshot) -> Gallery:
        """The same state as a gallery, without opening its files again."""
        gallery = cls.__new__(cls)
        vars(gallery).update(vars(snapshot))
        return gallery

    def add(
        self,
        sets: SetsSource,
        ids: Iterable[Any] | None = None,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Gallery:
        """Append sets as a new segment.

        Arguments as in `create`. Until the manifest is replaced at the end, nothing has changed.
        """
        new = NewRows(sets, ids, columns, progress)
        return Gallery._of(changes.add(self.path, new))

    def remove(self, ids: Iterable[Any], *, missing_ok: bool = False) -> Gallery:
        """Remove the sets with these ids; KeyError names unknown ones unless `missing_ok`.

        Their bytes stay on disk until `compact`.
        """
        return Gallery._of(changes.remove(self.path, ids, missing_ok))

    def update(
        self,
        ids: Iterable[Any],
        sets: SetsSource,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        insert: bool = False,
        progress: Progress | None = None,
    ) -> Gallery:
        """Replace the sets with these ids, in one step; they move to the end of the gallery.

        KeyError names unknown ids, unless `insert`, which adds them.
        """
        new = NewRows(sets, ids, columns, progress)
        return Gallery._of(changes.update(self.path, new, insert))

    def compact(self, *, progress: Progress | None = None) -> Gallery:
        """Rewrite the gallery as one segment without what was removed; positions stay the same.

        Readers that are open keep what they see.
        """
        return Gallery._of(changes.compact(self.path, progress))

    def build_index(self, spec: str | None = None, *, progress: Progress | None = None) -> Gallery:
        """Store an index, for the plan "prefilter"; later changes keep it up to date.

        `spec` is "Sketch" or "Sketch<d>" (d axes), "Cells,Sketch" or "Cells<n>,Sketch<d>" (in n
        cells), or a FAISS factory string; None chooses by size.
        """
        return Gallery._of(changes.build_index(self.path, spec, progress))

    def drop_index(self) -> Gallery:
        """Remove the stored index."""
        return Gallery._of(changes.drop_index(self.path))

    def export(self, path: str | Path, *, progress: Progress | None = None) -> None:
        """Write sets, ids and columns to a .parquet or .npy file, for other programs."""
        export(self, Path(path), progress)
