"""Log of a run: one JSON line per epoch, and TensorBoard if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from divse.models.weights import write_atomically


class Log:
    """Appends records to RUN/log.jsonl; a resumed run first drops lines past its checkpoint.

    Args:
        folder: The run.
        lines: Lines to keep, as counted by the checkpoint.
        tensorboard: Write a TensorBoard log too.

    """

    def __init__(self, folder: Path, lines: int = 0, tensorboard: bool = False) -> None:
        self.path, self.lines = folder / "log.jsonl", lines
        kept = self.path.read_text().splitlines()[:lines] if self.path.exists() else []
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=lines)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its numbers go to TensorBoard under their names."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(name, value, self.lines)
            self.writer.flush()
        self.lines += 1
