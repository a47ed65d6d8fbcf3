"""One array of plain numbers in a .npy file, never unpickled."""

from pathlib import Path
from typing import Any, Literal

import numpy as np


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray[Any, Any]:
    """Read or memory-map the array; errors name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        array: Any = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is no .npy file of plain numbers ({error}): is it whole?"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an .npz archive; expected the .npy file of one array")
    return array
