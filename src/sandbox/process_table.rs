//! Which processes are children of which: Postgres gives each backend a session of its own, so that a signal to the
//! process group reaches only the postmaster.

use std::io;

/// One line of the process table.
struct Row {
    pid: i32,
    parent: i32,
    /// `R`, `S`, `T` (stopped), `Z` (zombie), ... as ps(1) prints them.
    state: char,
}

/// All descendants of `pid`, parents before their children.
pub(super) fn descendants(pid: i32) -> io::Result<Vec<i32>> {
    let rows = rows()?;
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(rows.iter().filter(|row| row.parent == parent).map(|row| row.pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Those of `pids` that still run or are stopped; a zombie holds nothing any more and counts as gone.
pub(super) fn alive(pids: &[i32]) -> io::Result<Vec<i32>> {
    let rows = rows()?;
    Ok(rows.iter().filter(|row| row.state != 'Z' && pids.contains(&row.pid)).map(|row| row.pid).collect())
}

/// Whether every one of `pids` is stopped (or gone).
pub(super) fn all_stopped(pids: &[i32]) -> io::Result<bool> {
    let rows = rows()?;
    Ok(rows.iter().filter(|row| pids.contains(&row.pid)).all(|row| matches!(row.state, 'T' | 't' | 'Z')))
}

#[cfg(target_os = "linux")]
fn rows() -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and this read.
        let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { continue };
        // "pid (name) state parent ...", where the name may hold anything, parentheses too.
        let stat = String::from_utf8_lossy(&stat);
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        if let (Some(state), Some(Ok(parent))) =
            (fields.next().and_then(|s| s.chars().next()), fields.next().map(str::parse))
        {
            rows.push(Row { pid, parent, state });
        }
    }
    Ok(rows)
}

#[cfg(not(target_os = "linux"))]
fn rows() -> io::Result<Vec<Row>> {
    let output = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid=,state="]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let pid = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Row { pid, parent, state: fields.next()?.chars().next()? })
    };
    Ok(text.lines().filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_child_and_its_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(descendants(std::process::id() as i32).unwrap().contains(&pid));
        assert_eq!(alive(&[pid]).unwrap(), [pid]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(alive(&[pid]).unwrap().is_empty());
    }
}
