"""Disks that are full or read-only, and writers that are interrupted: the old state stays."""

import itertools
import threading
import time

import pytest
from gallery_cases import ragged, sets
from gallery_manifests import edit_manifest

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
    index = {"name": "index-00000000", "spec": "Flat", "asked": None}
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
