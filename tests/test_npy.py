"""Arrays of .npy files: what comes back, and what each wrong file is told."""

import gc

import numpy as np
import pytest

from divse.npy import read_npy


def test_an_array_comes_back(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    assert np.array_equal(read_npy(tmp_path / "a.npy"), np.arange(6.0).reshape(2, 3))
    assert isinstance(read_npy(tmp_path / "a.npy", "r"), np.memmap)


@pytest.mark.filterwarnings("error")
def test_each_wrong_file_is_named(tmp_path):
    np.savez(tmp_path / "archive.npz", a=np.ones(2))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "none.npy").write_bytes(b"")
    for name, said in {
        "archive": "archive.npy is an .npz archive",
        "objects": "objects.npy is no .npy file of plain numbers",
        "text": "text.npy is no .npy file of plain numbers",
        "none": "none.npy is no .npy file of plain numbers",
    }.items():
        for mode in (None, "r"):
            with pytest.raises(ValueError, match=said):
                read_npy(tmp_path / f"{name}.npy", mode)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_npy(tmp_path / "missing.npy")
    gc.collect()  # an archive left open would warn here
