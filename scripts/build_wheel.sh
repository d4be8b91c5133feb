#!/bin/sh
# Build the wheel so that it is byte-identical wherever it is built: sh scripts/build_wheel.sh OUTDIR
# Code identity is the product's claim; tests/unit/test_reproducible_wheel.py holds this script to it.
set -eu
out=$1
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
export SOURCE_DATE_EPOCH=1577836800 LC_ALL=C TZ=UTC
unset RUSTFLAGS # it would replace the flags of .cargo/config.toml, as RUSTC_WRAPPER would the wrapper
unset RUSTC_WRAPPER
if [ "${COCO_WHEEL_PROFILE:=release}" = release ]; then
    # C parts of dependencies (libsecp256k1, blst, c-kzg) must not learn where they are built either.
    cargo_home=${CARGO_HOME:-$HOME/.cargo}
    export CFLAGS="-ffile-prefix-map=$root=/src -ffile-prefix-map=$cargo_home=/cargo -g0"
fi
maturin build --profile "$COCO_WHEEL_PROFILE" --locked --target-dir "${COCO_WHEEL_TARGET:-rust/target/wheel}" \
    --out "$out" ${MATURIN_ARGS:-}
