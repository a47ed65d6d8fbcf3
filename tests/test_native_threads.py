"""divse_native called from many threads, beside other OpenMP libraries, after a fork."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from native_cases import OF_MAXIMA, every_isa, make_lengths, make_sets, packed

import divse_native


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def everything(data, **options):
    """Results of every function on the same sets."""
    queries, gallery, lengths, candidates, grads = data
    values, offsets = packed(gallery, lengths)
    ragged = {"gallery_lengths": lengths, **options}
    asked = grads[:, : candidates.shape[1]]
    scores, cosines = divse_native.scores_and_cosines(queries, gallery, **ragged)
    return (
        scores,
        divse_native.scores(queries, values, gallery_offsets=offsets, **options),
        *divse_native.search(queries, gallery.astype(np.float16), 7, **ragged),
        *divse_native.backward(queries, gallery, grads, **ragged),
        *divse_native.backward(queries, gallery, grads, cosines=cosines, **ragged),
        divse_native.candidate_scores(queries, gallery, candidates, **ragged),
        *divse_native.candidate_backward(queries, gallery, candidates, asked, **ragged),
    )


@pytest.fixture
def data(rng):
    queries, gallery = make_sets(rng, 37, 4, 48), make_sets(rng, 150, 5, 48)
    lengths, candidates = make_lengths(rng, 150, 5), rng.integers(-1, 150, (37, 9))
    return queries, gallery, lengths, candidates, rng.standard_normal((37, 150)).astype("float32")


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@every_isa
@pytest.mark.parametrize("similarity", ({"alpha": 16.0}, *OF_MAXIMA), ids=str)
def test_same_bits_for_any_number_of_threads(isa, similarity, data):
    one = everything(data, isa=isa, threads=1, **similarity)
    for threads in (2, 5):
        assert_same(everything(data, isa=isa, threads=threads, **similarity), one)


def test_eight_python_threads_with_different_kernels(data):
    """Each as it would be alone, bit for bit: nothing is shared between calls."""
    names = divse_native.instruction_sets()
    alone = {isa: everything(data, isa=isa, threads=1) for isa in names}

    def call(i):
        isa = names[i % len(names)]
        if i % 4 == 3:
            torch.einsum("bkd,nld->bnkl", torch.from_numpy(data[0]), torch.from_numpy(data[1]))
        return isa, everything(data, isa=isa, threads=1 + i % 4)

    with ThreadPoolExecutor(8) as pool:
        for isa, found in pool.map(call, range(32)):
            assert_same(found, alone[isa])


def test_beside_torch_and_faiss(data):
    """All three with threads of their own in one process, in turn and at once."""
    faiss = pytest.importorskip("faiss")
    queries, gallery = data[:2]
    flat, wanted = gallery.reshape(-1, 48), queries.reshape(-1, 48)
    expected = divse_native.search(queries, gallery, 5, threads=2)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    try:
        index = faiss.IndexFlatIP(48)
        index.add(flat)
        product = torch.from_numpy(wanted) @ torch.from_numpy(flat).T

        def call(_):
            neighbours = index.search(wanted, 3)[1]
            again = torch.from_numpy(wanted) @ torch.from_numpy(flat).T
            return divse_native.search(queries, gallery, 5, threads=2), neighbours, again

        with ThreadPoolExecutor(3) as pool:
            for found, neighbours, again in (*map(call, range(2)), *pool.map(call, range(4))):
                assert_same(found, expected)
                assert (neighbours[:, 0] == product.argmax(1).numpy()).all()
                torch.testing.assert_close(again, product)
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


THREADS = """
import threading, time, numpy as np, divse_native
sets = np.ones((256, 4, 64), np.float32), np.ones((20000, 4, 64), np.float32)
most, done = 0, False
def watch():
    global most
    while not done:
        most = max(most, len(__import__("os").listdir("/proc/self/task")))
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
divse_native.search(*sets, 1{options})
done = True
watcher.join()
print(most)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads by /proc")
@pytest.mark.parametrize(
    ("variable", "options", "own"),
    [("1", "", 0), ("3", "", 2), ("1", ", threads=4", 3), ("2,1", "", 1)],
)
def test_threads_are_those_asked_for(variable, options, own):
    """OMP_NUM_THREADS, or the argument; the caller's thread and the watcher's are not counted."""
    environment = {"OMP_NUM_THREADS": variable, "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", THREADS.replace("{options}", options)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) == 2 + own


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is what is tested")
def test_works_in_a_forked_child():
    script = """
import multiprocessing, numpy as np, divse_native
sets = np.ones((40, 4, 32), np.float32), np.ones((5000, 4, 32), np.float32)
def call(_):
    return divse_native.scores(*sets, alpha=1.0, threads=2).sum()
first = call(0)  # its helper waits for more work when the process forks
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(call, range(4)) == [first] * 4
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is what is tested")
def test_works_in_children_forked_while_other_threads_are_in_calls():
    script = """
import os, threading, numpy as np, divse_native
sets = np.ones((40, 4, 32), np.float32), np.ones((2000, 4, 32), np.float32)
def call():
    return divse_native.scores(*sets, alpha=1.0, threads=3).sum()
first, done = call(), False
def keep_calling():
    while not done:
        assert call() == first
callers = [threading.Thread(target=keep_calling) for _ in range(2)]
for caller in callers:
    caller.start()
for _ in range(8):
    child = os.fork()
    if not child:
        os._exit(int(call() != first))
    assert os.waitpid(child, 0)[1] == 0
done = True
for caller in callers:
    caller.join()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads by /proc")
def test_calls_share_their_helpers():
    """A call finds the helpers of the one before it."""
    script = """
import os, numpy as np, divse_native
sets = np.ones((40, 4, 32), np.float32), np.ones((2000, 4, 32), np.float32)
before = len(os.listdir("/proc/self/task"))
for _ in range(20):
    divse_native.scores(*sets, alpha=1.0, threads=3)
assert len(os.listdir("/proc/self/task")) == before + 2
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores of a thread, on Linux")
def test_helpers_may_go_wherever_the_process_may():
    """One that moved off its caller's core is not kept from it afterwards."""
    code = """
import os, numpy as np, divse_native
x = np.random.default_rng(0).standard_normal((2000, 4, 64), dtype=np.float32)
for _ in range(300):
    divse_native.search(x[:4], x, 5, threads=3)
cores = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
assert len(cores) >= 3 and all(own == os.sched_getaffinity(0) for own in cores), cores
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
