"""Tensors on their way from the host to the device, through pinned memory, on a stream beside."""

import torch
from torch import Tensor

Tensors = tuple[Tensor | None, ...]


class Staging:
    """One place for one part at a time; two of them in turn hide copies behind kernels.

    `prepare` copies to pinned memory, which takes the processor's time (and the disk's, if the part
    is memory-mapped); `upload` starts the copy to the device, and the current stream waits for it.
    The caller knows when kernels are done with the last upload, and only then uploads again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned: dict[int, Tensor] = {}  # bytes, by place in the part
        self._resident: dict[int, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None

    def prepare(self, part: Tensors) -> Tensors:
        """Return the part in pinned memory, or as it is where it is there or on the device."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy out of the same memory
        return tuple(
            self._pin(place, rows) if self._travels(rows) else rows
            for place, rows in enumerate(part)
        )

    def upload(self, prepared: Tensors) -> Tensors:
        """Return the part on the device, for use on the current stream."""
        if not any(self._travels(rows) for rows in prepared):
            return prepared
        with torch.cuda.device(self.device):
            stream = self._stream = self._stream or torch.cuda.Stream()
            there = tuple(
                self._send(place, rows, stream) if self._travels(rows) else rows
                for place, rows in enumerate(prepared)
            )
            self._copied = stream.record_event()
            torch.cuda.current_stream().wait_event(self._copied)
        return there

    def _travels(self, rows: Tensor | None) -> bool:
        return rows is not None and rows.device != self.device

    def _pin(self, place: int, rows: Tensor) -> Tensor:
        if rows.is_cuda or (rows.is_pinned() and rows.is_contiguous()):
            return rows
        pinned = self._pinned.get(place)
        if pinned is None or len(pinned) < rows.nbytes:
            pinned = torch.empty(rows.nbytes, dtype=torch.uint8, pin_memory=True)
            self._pinned[place] = pinned
        return shaped(pinned, rows).copy_(rows)

    def _send(self, place: int, rows: Tensor, stream: torch.cuda.Stream) -> Tensor:
        resident = self._resident.get(place)
        if resident is None or len(resident) < rows.nbytes:
            resident = torch.empty(rows.nbytes, dtype=torch.uint8, device=self.device)
            resident.record_stream(stream)
            stream.wait_stream(torch.cuda.current_stream())  # which may have used the memory
            self._resident[place] = resident
        with torch.cuda.stream(stream):
            return shaped(resident, rows).copy_(rows, non_blocking=True)


def shaped(memory: Tensor, like: Tensor) -> Tensor:
    """View the beginning of bytes as a tensor of the shape and type of another one."""
    return memory[: like.nbytes].view(like.dtype).view(like.shape)
