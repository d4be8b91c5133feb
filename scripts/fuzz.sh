#!/bin/sh
# Coverage-guided fuzzing of every reader of outside bytes: scripts/fuzz.sh [SECONDS for each of the two parts]
# Stable Rust: the coverage flags are LLVM's own. Corpora stay in bench/out/fuzz, so that the next run goes on.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
python=${PYTHON:-.venv/bin/python}
corpus=bench/out/fuzz
mkdir -p "$corpus/rust" "$corpus/python"
"$python" tests/fuzz/seeds.py "$corpus/rust" "$corpus/python"
flags="-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$option"
done
target=x86_64-unknown-linux-gnu
RUSTFLAGS="$flags" cargo build --quiet --release --locked --manifest-path rust/fuzz/Cargo.toml \
    --target "$target" --target-dir rust/target/fuzz
"rust/target/fuzz/$target/release/bytes" "$corpus/rust" -max_total_time="$seconds" -max_len=8192 \
    -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -artifact_prefix="$corpus/"
"$python" tests/fuzz/readers.py "$corpus/python" -max_total_time="$seconds" -max_len=4096 \
    -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -artifact_prefix="$corpus/"
