"""Building a gallery of many sets from a .npy file and from a Parquet stream, and opening it.

Each build is a process of its own. Columns: sets a second, peak of the process's own memory (of
pages that are no file's: sampled every 20 ms) and of all its resident pages (mapped input files
included), size on disk, milliseconds to open and seconds to verify the gallery.

    python bench/bench_gallery.py [--sets 100000 300000 1000000] [--k 4] [--dim 256] [--folder DIR]
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, parser

from divse.cli.embedding_files import read_embeddings
from divse.search.gallery import Gallery

BLOCK = 10_000  # sets drawn at a time


def write_inputs(folder: Path, sets: int, k: int, dim: int) -> dict[str, Path]:
    """Random unit vectors as float32 .npy and as Parquet with ids; neither is ever in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    paths = {".npy": folder / "sets.npy", ".parquet": folder / "sets.parquet"}
    array = np.lib.format.open_memmap(paths[".npy"], "w+", np.float32, (sets, k, dim))
    kind = pa.list_(pa.list_(pa.float32(), dim))
    schema = pa.schema({"id": pa.string(), "year": pa.int64(), "embeddings": kind})
    with pq.ParquetWriter(paths[".parquet"], schema, compression="none") as file:
        for first in range(0, sets, BLOCK):
            values = draw.standard_normal((min(BLOCK, sets - first), k, dim), dtype=np.float32)
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
            array[first : first + len(values)] = values
            inner = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
            offsets = pa.array(np.arange(0, len(values) * k + 1, k, dtype=np.int32))
            rows = np.arange(first, first + len(values))
            names = pa.array([f"picture-{row:08d}.jpg" for row in rows])
            lists = pa.ListArray.from_arrays(offsets, inner)
            file.write_table(pa.table([names, pa.array(rows % 50), lists], schema=schema))
    array.flush()
    return paths


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def build(source: Path, target: Path, answers: Any) -> None:
    """Build in this process; answer with what it took."""
    before = own_memory()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    opened = read_embeddings(source)
    Gallery.create(target, opened.blocks, opened.ids, opened.columns)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put({"seconds": seconds, "own": peak[0], "start": before, "resident": resident})


def measure(source: Path, target: Path, sets: int) -> dict[str, Any]:
    """One row of the table."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=build, args=(source, target, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"building from {source.name} failed: its traceback is above")
    took = answers.get()
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        gallery = Gallery.open(target)
        opening.append(time.perf_counter() - start)
    start = time.perf_counter()
    gallery.verify()
    return {
        "source": source.suffix,
        "sets": sets,
        "build s": round(took["seconds"], 1),
        "sets/s": round(sets / took["seconds"]),
        "own MB": round(took["own"] / 1e6),
        "of it at start": round(took["start"] / 1e6),
        "resident MB": round(took["resident"] / 1e6),
        "disk MB": round(gallery.nbytes / 1e6),
        "input MB": round(source.stat().st_size / 1e6),
        "open ms": round(1e3 * statistics.median(opening), 1),
        "verify s": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    arguments.add_argument("--k", type=int, default=4)
    arguments.add_argument("--dim", type=int, default=256)
    arguments.add_argument("--folder", type=Path, help="where to put the data for a while")
    options = arguments.parse_args()
    report = Report("bench_gallery", options)
    for sets in options.sets:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            sources = write_inputs(Path(folder), sets, options.k, options.dim)
            for number, source in enumerate(sources.values()):
                report.add(**measure(source, Path(folder) / f"gallery{number}", sets))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
