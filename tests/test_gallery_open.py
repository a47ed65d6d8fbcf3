"""What a snapshot has open, refuses to open, and keeps while others write."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from gallery_cases import ragged, sets
from gallery_manifests import edit_manifest, segment

from divse.search import mapping, writing
from divse.search.durable import checksum_file
from divse.search.gallery import Gallery
from divse.search.manifest import GalleryError
from divse.search.searcher import Searcher
from divse.search.snapshot import Snapshot

resource = pytest.importorskip("resource")  # POSIX
SEGMENTS, DESCRIPTORS = 300, 256
USE_MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
sys.path.insert(0, sys.argv[3])
from gallery_cases import sets
from divse.search.gallery import Gallery
gallery = Gallery.open(sys.argv[1])
gallery = gallery.add(sets(1)).remove([0]).compact()
gallery.verify()
print(len(gallery), len(gallery.segments))
"""


@pytest.fixture
def many(tmp_path):
    """A gallery of 300 segments, written at once."""
    gallery = Gallery.create(tmp_path / "g", sets(1), codes=False)
    manifest, entries = gallery.manifest, list(gallery.manifest.segments)
    for number in range(1, SEGMENTS):
        new = writing.NewRows(sets(1, seed=number), None, None)
        manifest, entry = writing.write_segment(gallery.path, manifest, new, gallery.schema)
        entries.append(entry)
    manifest.after(entries).write(gallery.path)
    return gallery.path


def test_more_segments_than_files_may_be_open(many):
    arguments = [many, str(DESCRIPTORS), os.path.dirname(__file__)]
    done = subprocess.run(
        [sys.executable, "-c", USE_MANY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(SEGMENTS), "1"], done.stderr


def test_too_many_open_files_are_no_damage(tmp_path):
    path = Gallery.create(tmp_path / "g", sets()).path
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    manifest = Gallery.open(path).manifest
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            Gallery(path, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- a snapshot stays whole


def test_snapshot_outlives_compaction(tmp_path):
    pytest.importorskip("faiss")
    gallery = Gallery.create(tmp_path / "g", sets()).add(sets(9, seed=1)).build_index("Flat")
    gallery = gallery.remove([3, 22])
    before = Searcher(gallery).search(sets(2), 5, "exact").ids
    gallery.compact()
    assert not (gallery.path / gallery.manifest.segments[0].name).exists()
    gallery.verify()
    told = []
    gallery.verify(told.append)
    assert sum(told) == gallery.nbytes
    np.testing.assert_array_equal(Searcher(gallery).search(sets(2), 5, "prefilter").ids, before)
    np.testing.assert_array_equal(Searcher(gallery).search(sets(2), 5, "exact").ids, before)


def test_file_that_vanishes_while_a_gallery_is_opened(tmp_path, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", sets(5)).add(sets(3, seed=1))
    map_memory, compacted = pa.memory_map, []

    def compact_first(path):
        if path.endswith("scales.npy") and not compacted:
            compacted.append(path)
            gallery.compact()
        return map_memory(path)

    monkeypatch.setattr(pa, "memory_map", compact_first)
    found = Gallery.open(gallery.path)
    assert compacted and len(found) == 8 and len(found.segments) == 1


def test_rows_are_gathered_once_and_single_rows_not_at_all(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets(), [f"s{row}" for row in range(20)])
    gallery = gallery.add(sets(6), list("abcdef")).remove(["s3", "b"])
    positions = np.array([[23, 0], [3, 19], [20, 3]])
    expected = gallery.ids[positions]
    fresh = Gallery.open(gallery.path)
    np.testing.assert_array_equal(fresh.take_ids(positions), expected)
    assert fresh.take_rows(np.array([23, 3])) == [{"id": "f"}, {"id": "s4"}]
    assert fresh.take_rows(np.array([], dtype=int)) == []
    assert "rows" not in vars(fresh)
    assert fresh.rows is fresh.rows
    with pytest.raises(IndexError, match="0 to 23"):
        fresh.take_ids(np.array([24]))


# --- what is not opened


@pytest.fixture
def indexed(tmp_path):
    pytest.importorskip("faiss")
    return Gallery.create(tmp_path / "g", sets()).build_index("Flat")


def index_folder(gallery):
    return gallery.path / gallery.manifest.index.name


def test_index_files_are_checked_when_a_gallery_is_opened(indexed):
    trained = index_folder(indexed) / "trained.faiss"
    whole = trained.read_bytes()
    trained.write_bytes(whole[:-1])
    with pytest.raises(GalleryError, match=r"trained\.faiss is truncated"):
        Gallery.open(indexed.path)
    trained.unlink()
    with pytest.raises(GalleryError, match=r"trained\.faiss is missing"):
        Gallery.open(indexed.path)
    assert len(Snapshot.open(indexed.path, index=False)) == 20
    next(indexed.path.glob("segment-*/shard_*.faiss")).unlink()
    Snapshot.open(indexed.path, index=False).verify()


def test_index_without_its_trained_part_is_refused(indexed):
    stored = json.loads((indexed.path / "manifest.json").read_text())["index"]
    edit_manifest(indexed.path, index={**stored, "files": {}})
    with pytest.raises(GalleryError, match=r"no trained\.faiss"):
        Gallery.open(indexed.path)


def test_linked_index_and_manifest_are_refused(indexed, tmp_path):
    folder = index_folder(indexed)
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GalleryError, match=r"trained\.faiss is a link"):
        Gallery.open(indexed.path)
    manifest = indexed.path / "manifest.json"
    shutil.move(manifest, tmp_path / "manifest.json")
    manifest.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(GalleryError, match=r"manifest\.json is a link"):
        Gallery.open(indexed.path)


def rewrite_rows(path, table, **options):
    """Put another table where a gallery has its rows, with a manifest that says so."""
    rows = segment(path) / "rows.arrow"
    rows.unlink()
    with (
        pa.OSFile(str(rows), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer,
    ):
        writer.write_table(table)
    content = json.loads((path / "manifest.json").read_text())
    file = {"bytes": rows.stat().st_size, "blake2b": checksum_file(rows)}
    content["segments"][0]["files"]["rows.arrow"] = file
    columns = {field.name: str(field.type) for field in table.schema if field.name != "id"}
    edit_manifest(path, segments=content["segments"], columns=columns)
    return file["bytes"]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", ["list", "dictionary"])
def test_compressed_rows_are_refused_before_they_are_unpacked(tmp_path, codec, kind):
    if kind == "list":
        zeros = pa.array(np.zeros(1 << 22, np.int64))
        column = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    else:
        column = pa.array(["0" * (1 << 22)]).dictionary_encode()
    table = pa.table({"id": pa.array([0]), "x": column})
    path = Gallery.create(tmp_path / "g", sets(1), columns={"x": column.slice(0, 1)}).path
    assert rewrite_rows(path, table) > 1 << 22
    Gallery.open(path).verify()
    size = rewrite_rows(path, table, compression=codec)
    assert size < 1 << 18
    allocated = pa.total_allocated_bytes()
    with pytest.raises(GalleryError, match=r"rows\.arrow is compressed"):
        Gallery.open(path)
    assert pa.total_allocated_bytes() - allocated <= 4 * size


def test_messages_that_the_footer_hides_are_not_read(tmp_path):
    path = Gallery.create(tmp_path / "g", sets(1)).path
    rows = segment(path) / "rows.arrow"
    plain = mapping.as_table(Gallery.open(path).segments[0].files["rows.arrow"])
    rewrite_rows(path, plain, compression="zstd")
    content = rows.read_bytes()
    body = pa.BufferOutputStream()
    with pa.ipc.new_stream(body, plain.schema) as writer:
        writer.write_table(plain)
    size = int.from_bytes(content[-10:-6], "little")  # of the footer, which names offsets
    mixed = content[:8] + body.getvalue().to_pybytes() + content[-10 - size :]
    assert pa.ipc.open_stream(mixed[8:]).read_all() == plain
    rows.write_bytes(mixed)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["segments"][0]["files"]["rows.arrow"] = {
        "bytes": len(mixed),
        "blake2b": checksum_file(rows),
    }
    edit_manifest(path, segments=manifest["segments"])
    assert Gallery.open(path).ids.tolist() == [0]


# --- docs/gallery-format.md, with numpy and pyarrow alone


def read_with_numpy(path):
    """Sets by id, and elements that their codes give back, as the page says."""
    manifest = json.loads((path / "manifest.json").read_text())
    found, decoded = {}, {}
    for entry in manifest["segments"]:
        folder = path / entry["name"]
        elements, codes = np.load(folder / "embeddings.npy"), np.load(folder / "codes.npy")
        near = np.load(folder / "scales.npy")[..., None].astype(float) * codes
        residuals = np.load(folder / "residuals.npy")
        assert (np.linalg.norm(elements - near, axis=-1) <= residuals).all()
        with pa.memory_map(str(folder / "rows.arrow")) as source:
            ids = pa.ipc.open_file(source).read_all().column("id").to_pylist()
        bits = np.zeros(entry["sets"], dtype=bool)
        if entry["removed"] is not None:
            bitmap = np.load(folder / entry["removed"]["file"])
            bits = np.array([bitmap[i >> 3] >> (i & 7) & 1 for i in range(entry["sets"])])
            assert bits.sum() == entry["removed"]["sets"]
        bounds = np.arange(entry["sets"] + 1)
        if manifest["layout"] == "ragged":
            bounds = np.load(folder / "offsets.npy")
        for row, (name, gone) in enumerate(zip(ids, bits, strict=True)):
            if not gone:
                part = slice(bounds[row], bounds[row + 1])
                found[name] = elements[part].reshape(-1, manifest["dim"])
                decoded[name] = near[part].reshape(-1, manifest["dim"])
    return manifest, found, decoded


@pytest.mark.parametrize("make", [sets, ragged])
@pytest.mark.parametrize("ids", [None, "string"])
def test_numpy_and_pyarrow_alone_read_every_kind_of_gallery(tmp_path, make, ids):
    names = None if ids is None else [f"s{row}" for row in range(20)]
    gallery = Gallery.create(tmp_path / "g", make(), names)
    gallery = gallery.add(make(11, seed=5), None if ids is None else list("abcdefghijk"))
    gallery = gallery.remove([0, 9, 25] if ids is None else ["s0", "s9", "e"])
    manifest, found, decoded = read_with_numpy(gallery.path)
    assert list(found) == gallery.ids.tolist() and len(found) == manifest["sets"] == 28
    assert sum(map(len, found.values())) == manifest["elements"]
    for at, name in enumerate(found):
        one = gallery.sets(np.array([at]))
        own = one.values[0, : gallery.lengths(np.array([at]))[0]]
        np.testing.assert_array_equal(found[name], own)
        np.testing.assert_allclose(decoded[name], own, atol=5e-3)
