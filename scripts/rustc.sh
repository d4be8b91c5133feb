#!/bin/sh
# Cargo runs this in place of rustc (.cargo/config.toml): what is built names no folder of whoever builds it. It is said
# here and not in RUSTFLAGS, which cargo compares: what others' crates became in another folder is as good here.
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$@" --remap-path-prefix="$root=/src" --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
