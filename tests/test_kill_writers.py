"""SIGKILL at random moments under load, and many readers beside one writer."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script, *words):
    return subprocess.run(
        [sys.executable, str(HERE / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX")
def test_two_hundred_kills_lose_nothing(tmp_path):
    pytest.importorskip("faiss")
    done = run("kill_writers.py", tmp_path, "--kills", 200)
    assert done.returncode == 0, done.stderr
    assert "200 kills" in done.stdout


def test_readers_beside_a_writer_see_committed_states_only(tmp_path):
    done = run("soak_gallery.py", tmp_path, "--seconds", 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every answer was exact" in done.stdout
