"""The peers of bench_search.py, and how one runs: a process of its own, within a time limit."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "peers"
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS", "NUMEXPR_NUM_THREADS"),
)


# numpy's threads spin while they wait for work. Beside an engine with threads of its own they take
# a core from these: each of its parallel regions then lasts a time slice of 4 ms (faiss over 40,000
# elements took 8 ms in place of 0.4). So there they wait asleep.
ASLEEP = {"OPENBLAS_THREAD_TIMEOUT": "4"}

OUT_OF_TIME = "not within "  # what the note of a peer that took too long has in it


class PeerError(Exception):
    """A peer failed, or took too long: the message is what the report says."""


@dataclass(frozen=True)
class PeerSpec:
    """A row of the table: which script runs, with which options, in which virtual environment.

    Peers with the same `built` share what was built.
    """

    name: str
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    venv: str | None = None
    built: str | None = None

    @property
    def build_name(self) -> str:
        """Folder of what it builds."""
        return (self.built or self.name).replace(" ", "-").replace("+", "")

    def python(self, folder: Path) -> Path:
        """The Python that runs it; PeerError says why there is none."""
        if self.venv is None:
            return Path(sys.executable)
        python, failed = folder / self.venv / "bin" / "python", folder / f"{self.venv}.failed"
        if failed.exists():
            raise PeerError(f"not installed: {failed.read_text().strip()}")
        if not python.exists():
            raise PeerError("not installed: run bench/peers/install.sh")
        return python


def _divse(name: str, plan: str, built: str, **options: str) -> PeerSpec:
    return PeerSpec(name, "divse_plans", {"plan": plan, **options}, built=built)


MAXSIM = {"similarity": "maxsim"}
PEERS = (
    PeerSpec("numpy exact", "exact_numpy"),
    _divse("divse exact fp32", "exact", "divse fp32", dtype="float32"),
    _divse("divse exact fp16", "exact", "divse fp16"),
    _divse("divse certified", "certified", "divse fp16"),
    _divse("divse prefilter", "prefilter", "divse index"),
    _divse("divse tuned", "auto", "divse index"),
    PeerSpec("faiss SQ8 + re-rank", "elements_faiss", {"codes": "SQ8"}),
    PeerSpec("faiss RaBitQ + re-rank", "elements_faiss", {"codes": "RaBitQ"}),
    PeerSpec("usearch + re-rank", "elements_usearch", venv="usearch"),
    PeerSpec("numpy MaxSim + rescoring", "exact_numpy", {"candidates": True}),
    PeerSpec(
        "fast-plaid + rescoring",
        "multivector_fast_plaid",
        {"rescore": True},
        venv="fast-plaid",
        built="fast-plaid",
    ),
    PeerSpec("numpy MaxSim", "exact_numpy", MAXSIM),
    _divse("divse certified MaxSim", "certified", "divse fp16", **MAXSIM),
    _divse("divse prefilter MaxSim", "prefilter", "divse index", **MAXSIM),
    PeerSpec("fast-plaid", "multivector_fast_plaid", venv="fast-plaid"),
    PeerSpec("lancedb", "multivector_lancedb", venv="lancedb"),
    PeerSpec("qdrant local", "multivector_qdrant", venv="qdrant"),
)


class PeerProcess:
    """A running peer; a context, so that it always ends."""

    def __init__(self, spec: PeerSpec, python: Path, threads: int, log: Path) -> None:
        self._log = log
        cpus = set(sorted(os.sched_getaffinity(0))[:threads])
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        if spec.script != "exact_numpy":
            environment |= ASLEEP
        command = [python, SCRIPTS / f"{spec.script}.py", json.dumps(spec.options)]
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer, no longer than so many seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        until, answer = time.monotonic() + seconds, b""
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        out = self._process.stdout.fileno()
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise PeerError(f"{request['do']}: {OUT_OF_TIME}{seconds / 60:.1f} minutes")
            part = os.read(out, 1 << 16)
            if not part:
                raise PeerError(self._last_words())
            answer += part
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise PeerError(f"{request['do']}: {found['error']}")
        return found

    def _last_words(self) -> str:
        status = self._process.wait()
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        return f"ended with status {status}: {lines[-1][:300] if lines else 'said nothing'}"
