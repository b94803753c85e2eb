//! The `walcache` binary: see [`walcache::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Two providers are in the dependency tree, so rustls cannot choose; it fails only where one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    walcache::cli::main()
}
