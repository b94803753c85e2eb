//! Finds the server programs of this machine.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::SandboxError;

/// Names the directory of Postgres' programs; set, it is the only place looked at.
const POSTGRES_BINDIR: &str = "WALCACHE_PG_BINDIR";

/// Names the program of Redis or Valkey; set, it is the only place looked at.
const REDIS_SERVER: &str = "WALCACHE_REDIS_SERVER";

/// What Redis' program is called, and Valkey's where a system has that instead.
const REDIS_PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// Parents of versioned Postgres installations, with what follows the version: Debian and Ubuntu, Red Hat and Fedora
/// (PGDG), Homebrew on Apple silicon and Intel.
const POSTGRES_PLACES: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// The directory that holds both `initdb` and `postgres`.
pub(super) fn postgres_bindir() -> Result<PathBuf, SandboxError> {
    let complete = |dir: &Path| ["initdb", "postgres"].iter().all(|program| executable(&dir.join(program)));
    let candidates = match env::var_os(POSTGRES_BINDIR) {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let mut dirs: Vec<PathBuf> = search_path();
            dirs.extend(versioned_bindirs());
            dirs.extend(pg_config_bindir());
            dirs
        }
    };
    // Links on the PATH lead to the installation, where the other programs are too.
    let real = |dir: &PathBuf| Some(dir.join("postgres").canonicalize().ok()?.parent()?.to_owned());
    let found = candidates.iter().find(|dir| complete(dir));
    found.map(|dir| real(dir).filter(|real| complete(real)).unwrap_or_else(|| dir.clone())).ok_or_else(|| {
        SandboxError::MissingBinary {
            program: "postgres (with initdb)",
            looked: listing(&candidates),
            remedy: "the package `postgresql` (14 or later), or name its directory in WALCACHE_PG_BINDIR",
        }
    })
}

/// The path of `redis-server`, or of `valkey-server`.
pub(super) fn redis_server() -> Result<PathBuf, SandboxError> {
    let candidates: Vec<PathBuf> = match env::var_os(REDIS_SERVER) {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let dirs = search_path();
            REDIS_PROGRAMS.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).collect()
        }
    };
    candidates.iter().find(|path| executable(path)).cloned().ok_or_else(|| SandboxError::MissingBinary {
        program: "redis-server",
        looked: listing(&candidates),
        remedy: "the package `redis-server` (`redis` or `valkey` outside Debian), or name the program in WALCACHE_REDIS_SERVER",
    })
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// `bin` of every versioned installation, newest first.
fn versioned_bindirs() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in POSTGRES_PLACES {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|v| v.parse().ok());
            found.extend(version.map(|version| (version, entry.path().join("bin"))));
        }
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(dir.trim()))
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn listing(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}
