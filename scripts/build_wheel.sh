#!/bin/sh
# Build the wheel so that it is byte-identical wherever it is built: sh scripts/build_wheel.sh OUTDIR
# Code identity is the product's claim; tests/unit/test_reproducible_wheel.py holds this script to it.
set -eu
out=$1
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export SOURCE_DATE_EPOCH=1577836800 LC_ALL=C TZ=UTC
export RUSTFLAGS="--remap-path-prefix=$root=/src --remap-path-prefix=$cargo_home=/cargo -C link-arg=-Wl,--build-id=none -C symbol-mangling-version=v0"
# C parts of dependencies (libsecp256k1, blst, c-kzg) must not learn where they are built either.
export CFLAGS="-ffile-prefix-map=$root=/src -ffile-prefix-map=$cargo_home=/cargo -g0"
maturin build --release --locked --target-dir "${COCO_WHEEL_TARGET:-rust/target/wheel}" --out "$out" ${MATURIN_ARGS:-}
