"""packed: rows of any number an item in one file, written once, taken up where a run stopped."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from divse.data import packed
from divse.data.packed import Packed, write_packed

ITEMS = [np.full((n, 3), i, np.float16) for i, n in enumerate([2, 1, 4, 3, 1, 5, 2])]


def blocks(done, stop=99, size=2):
    for begin in range(done, len(ITEMS), size):
        some = ITEMS[begin : begin + size]
        if begin >= stop:
            raise RuntimeError("stopped")
        yield np.concatenate(some), np.array([len(rows) for rows in some])


def check(found):
    assert len(found) == len(ITEMS)
    assert all((found.item(i) == rows).all() for i, rows in enumerate(ITEMS))


def test_items_come_back_as_they_were_and_padded_on_request(tmp_path):
    check(write_packed(tmp_path / "f.npy", blocks))
    rows, lengths = Packed.open(tmp_path / "f.npy").take(np.array([5, 0]))
    assert rows.shape == (2, 5, 3) and lengths.tolist() == [5, 2]
    assert (rows[1, :2] == 0).all() and not rows[1, 2:].any() and (rows[0] == 5).all()
    assert np.load(tmp_path / "f.npy").shape == (18, 3)  # plain numpy reads it


@pytest.mark.parametrize("stop", range(0, 7, 2))
def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, stop):
    path, starts = tmp_path / "f.npy", []
    monkeypatch.setattr(packed, "SYNC_BYTES", 1)
    with pytest.raises(RuntimeError, match="stopped"):
        write_packed(path, lambda done: blocks(done, stop))
    assert not path.exists()
    check(write_packed(path, lambda done: starts.append(done) or blocks(done)))
    assert starts == [stop]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.lock", "f.npy", "f.offsets.npy"]


def test_rows_that_a_kill_cut_off_are_computed_again(tmp_path):
    path, starts = tmp_path / "f.npy", []
    with pytest.raises(RuntimeError):
        write_packed(path, lambda done: blocks(done, 4))
    partial = tmp_path / "f.partial.npy"
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size - 5)  # into the last row of item 3
    check(write_packed(path, lambda done: starts.append(done) or blocks(done)))
    assert starts == [3]


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    write_packed(tmp_path / "f.npy", blocks)
    check(write_packed(tmp_path / "f.npy", lambda done: pytest.fail("computed again")))


def test_blocks_that_contradict_their_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 rows of 2 channels"):
        write_packed(
            tmp_path / "f.npy", lambda done: [(np.ones((2, 2), np.float16), np.array([3]))]
        )
    with pytest.raises(ValueError, match="no items"):
        write_packed(tmp_path / "g.npy", lambda done: [])


def test_those_who_want_the_same_file_wait_for_the_first(tmp_path):
    def write(_):
        return write_packed(tmp_path / "f.npy", blocks)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(write, range(4)):
            check(found)
