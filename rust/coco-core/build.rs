//! Says whether the compiler lets this crate catch allocations that fail (`.cargo/config.toml`, docs/adr/0009).

fn main() {
    println!("cargo:rerun-if-env-changed=RUSTC_BOOTSTRAP");
    println!("cargo:rustc-check-cfg=cfg(catches_exhaustion)");
    let allowed = std::env::var("RUSTC_BOOTSTRAP").unwrap_or_default();
    if allowed.split(',').any(|name| name == "coco_core") {
        println!("cargo:rustc-cfg=catches_exhaustion");
    }
}
