//! What the kernel says about a process.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks in a second, as `/proc` counts them: fixed to 100 in Linux' interface to programs.
const TICKS: f64 = 100.0;

/// Seconds of CPU that a process and all its threads have used so far, in user mode and in the kernel.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The second field is the name in parentheses, which may hold anything; the 14th and 15th are utime and stime.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("a process without a name")?;
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

/// As [`cpu_seconds`], of a process and its children that are still there.
pub fn family_cpu_seconds(pid: u32) -> Result<f64> {
    let mut sum = cpu_seconds(pid)?;
    for entry in fs::read_dir("/proc").context("list processes")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended meanwhile.
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(pid) {
            sum += cpu_seconds(child)?;
        }
    }
    Ok(sum)
}

/// The most memory that a process ever had resident, in MiB.
pub fn peak_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a status without VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM is {line:?}"))?;
    Ok(kib / 1024.0)
}
