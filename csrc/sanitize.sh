#!/usr/bin/env bash
# The tests of divse_native against a build that checks every address and every undefined
# operation (ASan, UBSan). Run by `make sanitize`; PYTHON is an interpreter with divse[dev].
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PATH
build=$PWD/build/sanitize
PATH="$(dirname "$(command -v "$python")"):$PATH"  # ninja lies beside the interpreter
checks="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1"

if ! "${CXX:-c++}" --version | grep -qi 'gcc\|g++\|free software'; then
    echo "sanitize.sh finds the libraries of GCC alone: set CXX=g++" >&2
    exit 1
fi
preload="$("${CXX:-c++}" -print-file-name=libasan.so) $("${CXX:-c++}" -print-file-name=libubsan.so)"

"$python" -m cmake -S csrc -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -DDIVSE_CUDA=OFF \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_CXX_FLAGS="$checks"
"$python" -m cmake --build "$build"

# Python itself never frees all it allocates, so leaks are not looked for.
export LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$build:$PWD:$PWD/kernels OMP_NUM_THREADS=1
# An editable install finds its own build before any path: it is left out, in every process.
cat >"$build/sitecustomize.py" <<'END'
import sys

sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_")]
END
loaded=$("$python" -c 'import divse_native; print(divse_native.__file__)')
[[ $loaded == "$build"/* ]] || { echo "tested would be $loaded, not the build above" >&2; exit 1; }
# GCC's ASan leaves its allocator's locks held in a child that forks beside other threads' calls:
# the child waits for ever (in SizeClassAllocator64::GetFromAllocator). `make test` runs that test.
"$python" -m pytest -p no:cacheprovider --hypothesis-seed=0 -n "${WORKERS:-2}" \
    tests/test_native.py tests/test_native_similarities.py tests/test_native_candidates.py \
    tests/test_native_threads.py tests/test_native_int8.py tests/test_native_int8_search.py \
    --deselect=tests/test_native_threads.py::test_works_in_children_forked_while_other_threads_are_in_calls
