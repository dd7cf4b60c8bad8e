#!/usr/bin/env bash
# All that needs a GPU, on a machine that has one and no Rust: bash tests/gpu/run.sh BIN OUT [ROWS]
#
# BIN holds argosy and argosy-worker, built anywhere for libtorch 2.11.0; libtorch with CUDA comes from this machine's Python.
# Writes OUT/gpu.json and OUT/gpu.md, which belong into ops/reports once looked at, and what led to them.
set -uo pipefail
bin=$(realpath "$1") out=$(realpath -m "$2") rows=${3:-256}
here=$(dirname "$(realpath "$0")") root=$(realpath "$(dirname "$0")/../..")
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel's libtorch.so would load CUDA whether wanted or not: everything but it, and ours (empty) where BIN has one.
torch=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])') || exit 3
mkdir "$work/lib"
ln -s "$torch"/lib/*.so* "$work/lib/"
if [ -f "$bin/libtorch.so" ]; then ln -sf "$bin/libtorch.so" "$work/lib/libtorch.so"; fi
nvidia=$(printf '%s:' "$torch"/../nvidia/*/lib)
before=${LD_LIBRARY_PATH:-}
export LD_LIBRARY_PATH=$work/lib:$nvidia$before ARGOSY_LIBTORCH_CUDA=$torch/lib

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/machine.txt"
"$bin/argosy" doctor | tee "$out/doctor.txt"
"$bin/argosy-worker" devices || exit 5
for style in noto; do "$bin/argosy" unpack "$root/ops/demo/$style.tar.zst" "$work/data" || exit 1; done
timeout 240 "$bin/argosy-worker" check-device --rows "$rows" --report "$out/check.json" 2>&1 | tee "$out/check.txt"
LD_LIBRARY_PATH=$before timeout 60 python3 "$here/peer.py" --rows "$rows" | tee "$out/peer.txt"
python3 "$here/jobs.py" --bin "$bin" --work "$work" --check "$out/check.json" --out "$out"
