"""Whatever bytes there are, a reader ends with the sets or with a GalleryError."""

import contextlib
import json

import hypothesis
import pyarrow as pa
import pytest
from gallery_cases import ragged
from gallery_manifests import signed
from hypothesis import strategies as st

from divse.search.durable import checksum_bytes
from divse.search.gallery import Gallery
from divse.search.manifest import GalleryError


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
