"""Galleries that are damaged, foreign, hostile, or on a disk that fails: found, named, harmless."""

import contextlib
import itertools
import json
import shutil
import threading
import time

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from gallery_cases import ragged, sets
from hypothesis import strategies as st

from divse.search.durable import checksum_bytes
from divse.search.gallery import Gallery
from divse.search.lock import writer_lock
from divse.search.manifest import GalleryError

OPERATIONS = {
    "add": lambda gallery: gallery.add(sets(3, seed=1)),
    "remove": lambda gallery: gallery.remove([1, 2]),
    "update": lambda gallery: gallery.update([1, 2], sets(2, seed=1)),
    "compact": lambda gallery: gallery.compact(),
    "index": lambda gallery: gallery.build_index("Flat"),
    "create": lambda gallery: Gallery.create(gallery.path.parent / "new", sets()),
    "overwrite": lambda gallery: Gallery.create(gallery.path, sets(), overwrite=True),
}
FAILURES = {
    "full": OSError(28, "No space left on device"),
    "read-only": OSError(30, "Read-only file system"),
}


@pytest.mark.parametrize("place", ["os.replace", "os.fsync", "divse.search.durable.checksum_file"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_disk_that_fails_leaves_the_old_state(tmp_path, monkeypatch, name, failure, place):
    gallery = Gallery.create(tmp_path / "g", sets()).add(sets(2, seed=4))
    before = sorted(tmp_path.rglob("*"))

    def fail(*_):
        raise FAILURES[failure]

    with monkeypatch.context() as broken:
        broken.setattr(place, fail)
        with pytest.raises(OSError, match=str(FAILURES[failure].strerror)):
            OPERATIONS[name](gallery)
    assert sorted(tmp_path.rglob("*")) == before
    assert Gallery.open(gallery.path).manifest == gallery.manifest
    OPERATIONS[name](gallery).verify()


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_interrupt_during_a_commit_removes_nothing(tmp_path, monkeypatch, name):
    gallery = Gallery.create(tmp_path / "g", sets()).add(sets(2, seed=4))
    path = tmp_path / "new" if name == "create" else gallery.path

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as twice, pytest.raises(KeyboardInterrupt):
        twice.setattr("divse.search.durable.sync_folder", _after_rename(path, interrupt))
        twice.setattr("divse.search.writer.is_state", interrupt)
        OPERATIONS[name](gallery)
    after = Gallery.open(path)
    after.verify()
    assert after.manifest.generation == (1 if name == "create" else 3)


def _after_rename(folder, interrupt):
    """A flush of folders that is interrupted once the manifest was replaced."""
    manifest = folder / "manifest.json"
    before = manifest.stat().st_ino if manifest.exists() else None

    def sync_folder(path):
        if path == folder and manifest.exists() and manifest.stat().st_ino != before:
            interrupt()

    return sync_folder


def test_build_that_fails_leaves_another_build_alone(tmp_path):
    """The second builder waits for the lock; the first one's failure must not remove its work."""
    path, begun, made = tmp_path / "g", threading.Event(), []

    def failing():
        yield sets(3)
        begun.set()
        time.sleep(0.3)
        raise RuntimeError("no more")

    def build():
        begun.wait()
        made.append(Gallery.create(path, sets(7)))

    other = threading.Thread(target=build)
    other.start()
    with pytest.raises(RuntimeError, match="no more"):
        Gallery.create(path, failing())
    other.join()
    assert len(made) == 1 and len(Gallery.open(path)) == 7
    Gallery.open(path).verify()


def test_nothing_outside_is_removed_through_a_link(tmp_path):
    outside = tmp_path / "mine"
    outside.mkdir()
    (outside / "letter.txt").touch()
    gallery = Gallery.create(tmp_path / "g", sets())
    (gallery.path / "index-00000000").symlink_to(outside)
    index = {"name": "index-00000000", "spec": "Flat", "automatic": True}
    index["files"] = {"trained.faiss": {"bytes": 0, "blake2b": ""}}
    edit_manifest(gallery.path, index=index)
    for change in (lambda: gallery.remove([0]), gallery.drop_index, gallery.build_index):
        with pytest.raises(GalleryError, match="is a link"):
            change()
    assert (outside / "letter.txt").exists()


class Breaking:
    """A file whose writes are counted; `count` fails when it is time."""

    def __init__(self, file, count):
        self._file, self._count = file, count

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._count()
        return self._file.write(content)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("make", [sets, ragged])
def test_every_open_and_write_of_an_add_may_fail(tmp_path, monkeypatch, make, failure):
    gallery = Gallery.create(tmp_path / "g", make())
    before = sorted(tmp_path.rglob("*"))
    for failing in itertools.count(1):
        counter = itertools.count(1)

        def count(failing=failing, counter=counter):
            if next(counter) == failing:
                raise FAILURES[failure]

        def broken_open(path, mode, count=count, **options):
            count()
            return Breaking(open(path, mode, **options), count)

        with monkeypatch.context() as broken:
            broken.setattr("divse.search.durable.open", broken_open, raising=False)
            try:
                gallery.add(make(3, seed=1))
                break
            except OSError as error:
                assert error is FAILURES[failure]
        assert sorted(tmp_path.rglob("*")) == before
        assert Gallery.open(gallery.path).manifest == gallery.manifest
    assert failing > 20
    Gallery.open(gallery.path).verify()


def test_two_writers_wait_for_each_other(tmp_path, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", sets())
    monkeypatch.setattr("divse.search.lock.WAIT_SECONDS", 0.05)
    with writer_lock(gallery.path), pytest.raises(GalleryError, match="another process is writing"):
        gallery.add(sets(2))
    assert len(gallery.add(sets(2))) == 22


@pytest.fixture
def stored(tmp_path):
    Gallery.create(tmp_path / "g", ragged(), [f"set {row}" for row in range(20)])
    return tmp_path / "g"


def segment(folder):
    return next(folder.glob("segment-*"))


def edit_manifest(folder, sign=True, **changes):
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    if sign:
        content.pop("checksum")
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        content["checksum"] = checksum_bytes(text.encode())
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["embeddings.npy", "offsets.npy", "rows.arrow"])
def test_file_damage_is_found_and_named(stored, name):
    path = segment(stored) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(GalleryError, match=f"{name} is truncated"):
        Gallery.open(stored)
    path.write_bytes(whole + b"x")
    with pytest.raises(GalleryError, match=f"{name} is too long"):
        Gallery.open(stored)
    path.unlink()
    with pytest.raises(GalleryError, match=f"{name} is missing"):
        Gallery.open(stored)
    path.write_bytes(whole)
    Gallery.open(stored).verify()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(GalleryError, match=name):
        Gallery.open(stored).verify()


def test_header_that_does_not_fit_the_manifest(stored):
    path = segment(stored) / "embeddings.npy"
    header = path.read_bytes()
    path.write_bytes(header.replace(b"<f2", b"<i2"))
    with pytest.raises(GalleryError, match=r"<i2.*the manifest says float16"):
        Gallery.open(stored)
    pickled = np.array([None] * 3, dtype=object)
    np.save(path, pickled, allow_pickle=True)
    path.write_bytes(path.read_bytes().ljust(len(header), b"\0"))
    with pytest.raises(GalleryError, match="embeddings.npy is damaged"):
        Gallery.open(stored)


def test_offsets_that_do_not_divide_the_elements(stored):
    path = segment(stored) / "offsets.npy"
    offsets = np.load(path)
    offsets[3] = 10**9
    np.save(path, offsets)
    with pytest.raises(GalleryError, match="offsets do not divide"):
        Gallery.open(stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "newer divse.*version 2.*update divse"),
        ({"requires": ["layers"]}, "newer divse.*layers"),
        ({"version": "1"}, "damaged: version '1'"),
        ({"format": "other"}, "not a divse gallery"),
        ({"dtype": "float64"}, "damaged.*float64"),
        ({"dim": -8}, "damaged.*-8"),
        ({"segments": {}}, "damaged"),
        ({"segments": [{"name": "../../etc"}]}, "damaged.*segment name"),
        ({"metadata": 3}, "damaged"),
    ],
)
def test_manifest_damage_is_named(stored, changes, message):
    edit_manifest(stored, **changes)
    with pytest.raises(GalleryError, match=message):
        Gallery.open(stored)


def test_manifest_is_checked_against_its_own_checksum(stored):
    edit_manifest(stored)
    Gallery.open(stored)
    edit_manifest(stored, sign=False, generation=7)
    with pytest.raises(GalleryError, match="its own checksum"):
        Gallery.open(stored)
    (stored / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(GalleryError, match="not JSON"):
        Gallery.open(stored)


def test_foreign_and_missing_folders(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="no gallery at"):
        Gallery.open(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(GalleryError, match="not a gallery"):
        Gallery.open(tmp_path / "photos")
    with pytest.raises(FileExistsError, match="choose another folder"):
        Gallery.create(tmp_path / "photos", sets(), overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_links_out_of_the_gallery_are_refused(stored, tmp_path):
    inside, outside = segment(stored), tmp_path / "elsewhere"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(GalleryError, match="link"):
        Gallery.open(stored)


def test_unknown_files_of_a_later_divse_are_verified_but_not_needed(stored):
    codes = segment(stored) / "later.npy"
    codes.write_bytes(b"later")
    content = json.loads((stored / "manifest.json").read_text())
    entry = {"bytes": 5, "blake2b": checksum_bytes(b"later")}
    content["segments"][0]["files"]["later.npy"] = entry
    edit_manifest(stored, segments=content["segments"])
    Gallery.open(stored).verify()
    codes.write_bytes(b"Later")
    with pytest.raises(GalleryError, match="later.npy"):
        Gallery.open(stored).verify()


def test_numpy_and_pyarrow_alone_can_read_it(stored):
    manifest = json.loads((stored / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("divse-gallery", 1)
    folder = stored / manifest["segments"][0]["name"]
    packed, offsets = np.load(folder / "embeddings.npy"), np.load(folder / "offsets.npy")
    given = ragged()
    first = packed[offsets[4] : offsets[5]]
    np.testing.assert_array_equal(first, given.values[4, : given.lengths[4]].astype(np.float16))
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().column("id")[4].as_py() == "set 4"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_elements_that_are_no_unit_vectors_are_found(stored, value):
    path = segment(stored) / "embeddings.npy"
    array = np.load(path, mmap_mode="r+")
    array[17] = value
    array.flush()
    content = json.loads((stored / "manifest.json").read_text())
    file = {"bytes": path.stat().st_size, "blake2b": checksum_bytes(path.read_bytes())}
    content["segments"][0]["files"]["embeddings.npy"] = file
    edit_manifest(stored, segments=content["segments"])
    with pytest.raises(GalleryError, match="element 17 is no unit vector"):
        Gallery.open(stored).verify()


# --- whatever bytes there are, the reader ends with the sets or with a GalleryError


def changed_bytes(data, content):
    """Draw damage of a file's bytes: flips, a cut, a piece doubled, moved or overwritten."""
    content = bytearray(content)
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "overwrite"]))
    if kind == "flip" and content:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        new = data.draw(st.binary(min_size=1, max_size=16))
        content[at : at + len(new)] = new
    return bytes(content)


def use(folder):
    """Everything that a reader does; True if the gallery was good."""
    try:
        gallery = Gallery.open(folder)
        gallery.verify()
    except GalleryError:
        return False
    assert len(gallery.sets()) == len(gallery)
    assert len(gallery.rows.to_pylist()) == len(gallery)
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "g"
    gallery = Gallery.create(path, ragged(9), [f"s{row}" for row in range(9)], {"n": range(9)})
    return gallery.add(ragged(4, seed=3), list("abcd"), {"n": range(4)}).remove(["s3", "b"]).path


@contextlib.contextmanager
def damaged(path, content):
    """The file with other bytes, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def same_meaning(name, before, after):
    """Whether a change is no damage: to the empty lock file, or to white space around JSON."""
    if name == "manifest.json":
        with contextlib.suppress(ValueError):
            return json.loads(after) == json.loads(before)
    return after == before or name == "writer.lock"


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.data())
def test_any_damage_is_found(whole, data):
    path = data.draw(st.sampled_from(sorted(p for p in whole.rglob("*.*") if p.is_file())))
    before = path.read_bytes()
    after = changed_bytes(data, before)
    with damaged(path, after):
        assert use(whole) == same_meaning(path.name, before, after)
    assert use(whole)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.data())
def test_hostile_files_with_right_checksums_are_harmless(whole, data):
    """Somebody who signs what he changed may store wrong sets, but cannot break the reader."""
    manifest = whole / "manifest.json"
    content = json.loads(manifest.read_text())
    entry = data.draw(st.sampled_from(content["segments"]))
    name = data.draw(st.sampled_from(sorted(entry["files"])))
    path = whole / entry["name"] / name
    after = changed_bytes(data, path.read_bytes())
    entry["files"][name] = {"bytes": len(after), "blake2b": checksum_bytes(after)}
    with damaged(path, after), damaged(manifest, signed(content)):
        allocated = pa.total_allocated_bytes()
        use(whole)
        assert pa.total_allocated_bytes() - allocated <= 4 * len(after) + 4096


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside),
    max_leaves=6,
)


def paths_of(value, path=()):
    """The place of every value inside a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inside, (*path, key))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.data())
def test_hostile_manifests_are_harmless(whole, data):
    manifest = whole / "manifest.json"
    content = json.loads(manifest.read_text())
    *parents, last = data.draw(st.sampled_from([p for p in paths_of(content) if p]))
    inside = content
    for key in parents:
        inside = inside[key]
    inside[last] = data.draw(JSON_VALUES)
    with damaged(manifest, signed(content)):
        use(whole)


def signed(content):
    """A manifest's bytes with the checksum that fits."""
    content.pop("checksum", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "checksum": checksum_bytes(text.encode())}).encode()
