"""Ctrl-C: a SIGINT in the middle of a command ends it with 130 and leaves nothing broken."""

import io
import json
import os
import signal
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from gallery_cases import vectors

from divse.search.gallery import Gallery

WRITTEN = "divse.search.segment_writer:SegmentWriter.append"
# A command, and the function during which it is interrupted.
COMMANDS = {
    "build new --embeddings sets.npy": WRITTEN,
    "build g --embeddings sets.npy --overwrite": WRITTEN,
    "add g --embeddings sets.npy": WRITTEN,
    "update g --embeddings sets.npy --ids ids.npy": WRITTEN,
    "compact g": WRITTEN,
    "index g": "divse.search.changes:write_shard",
    "remove g 3": "divse.search.durable:write_new",
    "export g out.npy": "divse.search.segment_writer:NpyStream.append",
    "export g out.parquet": "divse.search.export:_lists",
    "verify g": "divse.search.mapping:MappedFile.verify",
    "query g --embeddings sets.npy --json": "divse.search.searcher:run_exact",
}


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts what runs in its background with SIGINT ignored, the tests among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("sets.npy", vectors(6, 3, 8, seed=1))
    np.save("ids.npy", np.arange(6))
    Gallery.create("g", vectors(9, 3, 8)).remove([7])
    return tmp_path


def interrupt_after(monkeypatch, place):
    """Let the process send itself SIGINT when a function is done for the first time."""
    module, _, name = place.partition(":")
    owner, name = (import_module(module), *name.split("."))[-2:]
    owner = getattr(import_module(module), owner) if isinstance(owner, str) else owner
    function = getattr(owner, name)

    def interrupted(*given, **named):
        result = function(*given, **named)
        monkeypatch.setattr(owner, name, function)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_leaves_everything_as_it_was(folder, cli, monkeypatch, command):
    before, files = Gallery.open("g").manifest, sorted(folder.rglob("*"))
    interrupt_after(monkeypatch, COMMANDS[command])
    code, out, err = cli(*command.split())
    assert (code, out, err) == (130, "", "\ndivse-search: interrupted\n")
    assert sorted(folder.rglob("*")) == files
    after = Gallery.open("g")
    after.verify()
    assert after.manifest == before
    assert cli(*command.split())[0] == 0  # and nothing stands in the way of another try


def test_answers_that_were_printed_stay(folder, cli, monkeypatch):
    line = json.dumps({"embedding": vectors(2, 8).tolist()}).encode() + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(2 * line)))
    interrupt_after(monkeypatch, "divse.cli.query:print_json")
    code, out, _ = cli("query", "g", "-")
    assert code == 130 and [json.loads(text)["query"] for text in out.splitlines()] == [{"line": 1}]


def test_a_shell_sees_it(folder):
    """The same in a process of its own, which waits for its input meanwhile."""
    command = [sys.executable, "-m", "divse.cli", "query", "g", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdin.write(json.dumps({"embedding": vectors(2, 8).tolist()}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["hits"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "\ndivse-search: interrupted\n")
