"""Whatever moment the power goes: the last committed state is there, whole, and can be written."""

import numpy as np
import power_cut
import pytest

from divse.search.gallery import Gallery
from divse.search.manifest import FILE_NAME, GalleryError, Manifest
from divse.sets import EmbeddingSets


def sets(n, seed):
    values = np.random.default_rng(seed).standard_normal((n, 3, 8)).astype(np.float32)
    return EmbeddingSets.of(values, np.random.default_rng(seed).integers(1, 4, n))


def history():
    """Operations on a gallery; each is called with the folder."""
    yield "create", lambda path: Gallery.create(path, sets(6, 0), list("abcdef"))
    yield "add", lambda path: Gallery.open(path).add(sets(4, 1), list("ghij"))
    yield "remove", lambda path: Gallery.open(path).remove(["b", "h"])
    yield "index", lambda path: Gallery.open(path).build_index("Flat")
    yield "update", lambda path: Gallery.open(path).update(["a", "i"], sets(2, 2))
    yield "add with an index", lambda path: Gallery.open(path).add(sets(3, 3), list("xyz"))
    yield "compact", lambda path: Gallery.open(path).compact()
    yield "drop the index", lambda path: Gallery.open(path).drop_index()
    yield "overwrite", lambda path: Gallery.create(path, sets(2, 4), ["p", "q"], overwrite=True)


def state(path):
    return Manifest.read(path).checksum if (path / FILE_NAME).exists() else None


def check(left, allowed, ids, tidy):
    """The folder is at an allowed state, whole, and takes the next write, which tidies it."""
    found = state(left)
    assert found in allowed
    if found is not None:
        gallery = Gallery.open(left)
        gallery.verify()
        assert gallery.ids.tolist() == ids[found]
    if not tidy:
        return
    if found is not None:
        after = gallery.add(sets(1, 9), ["new"])
    else:
        after = Gallery.create(left, sets(1, 9), ["new"])
    assert after.ids.tolist() == [*ids.get(found, []), "new"]
    named = {entry.name for entry in after.manifest.segments} | {"manifest.json", "writer.lock"}
    assert {path.name for path in left.iterdir() if not path.name.startswith("index-")} == named


def test_every_moment_of_every_operation(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    root = top / "galleries" / "g"  # neither folder is there: their names may be lost as well
    ids, steps, states = {}, 0, 0

    def on_step():
        nonlocal steps
        steps += 1
        for tree in power_cut.cuts(recorder.disk, top, steps):
            pending[repr(tree)] = tree

    def check_pending(allowed):
        nonlocal states
        with pytest.MonkeyPatch.context() as patch:
            for name, function in REAL.items():
                patch.setattr(power_cut.durable, name, function)
            patch.setattr("os.fsync", lambda descriptor: None)  # these folders need not last
            for tree in pending.values():
                states += 1
                left = power_cut.write_tree(tree, tmp_path / str(states)) / "galleries" / "g"
                check(left, allowed, ids, tidy=states % 5 == 0)
        pending.clear()

    pending = {}
    with power_cut.recorded(top, on_step) as recorder:
        for _, operation in history():
            before = state(root)
            gallery = operation(root)
            after = gallery.manifest.checksum
            ids[after] = gallery.ids.tolist()
            check_pending({before, after})
            on_step()
            check_pending({after})  # the operation had returned: nothing is lost
    assert steps > 150 and states > 200


def test_power_cut_after_an_interrupted_writer_and_another_one(tmp_path):
    """The second writer tidies up after a state that the first one may not have flushed."""
    root = tmp_path / "g"
    root.mkdir()
    trees = {}

    def on_step():
        for tree in power_cut.cuts(recorder.disk, root, len(trees)):
            trees[repr(tree)] = tree

    with power_cut.recorded(root, lambda: on_step()) as recorder:
        Gallery.create(root, sets(6, 0), list("abcdef")).add(sets(2, 1), ["g", "h"]).remove(["a"])
        trees.clear()
        real, seen = power_cut.durable.sync_folder, []

        def interrupted(path):
            seen.append(path)
            if path == root and (root / FILE_NAME).stat().st_ino != before:
                raise KeyboardInterrupt
            real(path)

        before = (root / FILE_NAME).stat().st_ino
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(power_cut.durable, "sync_folder", interrupted)
            Gallery.open(root).compact()
        Gallery.open(root).add(sets(1, 2), ["i"])
    for number, tree in enumerate(trees.values()):
        gallery = Gallery.open(power_cut.write_tree(tree, tmp_path / str(number)))
        gallery.verify()
        assert gallery.ids.tolist() in (list("bcdefgh"), list("bcdefghi"))


NAMES = ("make_folder", "open_new", "close_durably", "rename", "sync_folder", "remove")
REAL = {name: getattr(power_cut.durable, name) for name in NAMES}


def test_the_model_finds_a_missing_flush(tmp_path):
    """Without the flush of the folder before the manifest is replaced, states are lost."""
    root = tmp_path / "g"
    root.mkdir()
    left = []
    with power_cut.recorded(root, lambda: None) as recorder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(power_cut.durable, "sync_folder", lambda path: None)
        Gallery.create(root, sets(3, 0))
        left.extend(power_cut.cuts(recorder.disk, root, 1, draws=20))
    broken = 0
    for number, tree in enumerate(left):
        try:
            Gallery.open(power_cut.write_tree(tree, tmp_path / str(number))).verify()
        except (GalleryError, FileNotFoundError):
            broken += 1
    assert broken > 3
