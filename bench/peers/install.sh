#!/bin/sh
# Give every peer of bench_search.py that needs one a virtual environment of its own.
#   bench/peers/install.sh FOLDER        (python3 and pip as they are configured here; some 6 GB)
# A peer that cannot be installed leaves FOLDER/NAME.failed with the reason, which the bench reports.
set -u
folder=${1:?"usage: bench/peers/install.sh FOLDER"}
python=${PYTHON:-python3}
mkdir -p "$folder"

install() {  # NAME PACKAGE...: a folder NAME with a python that has these packages
    name=$1
    shift
    rm -f "$folder/$name.failed"
    [ -x "$folder/$name/bin/python" ] && [ -e "$folder/$name/.ready" ] && return
    if "$python" -m venv --clear "$folder/$name" > "$folder/$name.log" 2>&1 &&
        "$folder/$name/bin/python" -m pip install -q "$@" >> "$folder/$name.log" 2>&1; then
        touch "$folder/$name/.ready"
        echo "$name: installed"
    else
        { grep -E 'ERROR|Error' "$folder/$name.log" || tail -n 1 "$folder/$name.log"; } |
            tail -n 1 > "$folder/$name.failed"
        rm -rf "${folder:?}/$name"
        echo "$name: not installed, see $folder/$name.log"
    fi
}

install usearch "usearch>=2.16" numpy
install lancedb "lancedb>=0.20" numpy
install qdrant "qdrant-client>=1.12" numpy
install fast-plaid "fast-plaid>=1.0" numpy
