//! A process in a directory of its own, both of which end with us.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tokio::time::{Instant, sleep};

use super::{SandboxError, process_table};

const GUARD: &str = include_str!("supervised/guard.sh");

/// Becomes the server on the first line of input, and gives up on end of file: until the guard knows the process id,
/// the server must not run, for nobody would end it if we were killed in between.
const GATE: &str = r#"read -r _ || exit 1; exec "$@" </dev/null"#;

/// How often a condition of another process is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// How long the system may take to stop or remove a process that was sent SIGSTOP or SIGKILL.
const KERNEL_LIMIT: Duration = Duration::from_secs(10);

/// What ends the process when its owner is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSignal {
    /// SIGQUIT: for Postgres, an immediate shutdown that also ends its children and frees its shared memory.
    Quit,
    /// SIGKILL.
    Kill,
}

/// The user a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; no other groups are kept.
    pub gid: u32,
}

/// At most one process at a time, in a temporary directory of its own, with its output in files there.
///
/// Dropping it ends the process and removes the directory. So does the end of our process, in whatever way: a
/// *guard*, a small shell in a process group of its own, waits on a pipe that only we hold open, and cleans up when it
/// reads end of file. That needs no code of ours to run, so it covers panics, Ctrl-C and `kill -9`. (The obvious
/// alternative, `PR_SET_PDEATHSIG`, is about the parent *thread*, which a test or a runtime ends early; it does not
/// reach Postgres' children, cannot remove a directory, and needs unsafe code.)
#[derive(Debug)]
pub struct Supervised {
    program: &'static str,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    guard: Child,
    /// The guard's input; closing it makes the guard clean up.
    lifeline: Option<ChildStdin>,
    /// Not reaped yet, so that its process id is ours to signal.
    child: Option<Child>,
    /// How the latest process ended.
    ended: Option<ExitStatus>,
    paused: bool,
}

impl Supervised {
    /// Creates the directory (mode 0700, owned by `owner`) and its guard. `program` is the name used in errors.
    pub fn new(program: &'static str, last: LastSignal, owner: Option<User>) -> Result<Self, SandboxError> {
        let prefix = format!("walcache-{program}-");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).permissions(fs::Permissions::from_mode(0o700));
        // The guard removes it: a TempDir's own removal would not outlive a kill.
        let dir = builder.tempdir().map_err(SandboxError::io("create directory in", std::env::temp_dir()))?.keep();
        if let Some(user) = owner {
            chown(&dir, Some(user.uid), Some(user.gid)).map_err(SandboxError::io("change owner", &dir))?;
        }
        let signal = match last {
            LastSignal::Quit => "QUIT",
            LastSignal::Kill => "KILL",
        };
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "walcache-guard"])
            .arg(&dir)
            .arg(signal)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut guard = match guard {
            Ok(guard) => guard,
            Err(source) => {
                // Best effort: the error worth reporting is the one we have.
                let _ = fs::remove_dir_all(&dir);
                return Err(SandboxError::io("start", "/bin/sh")(source));
            }
        };
        let lifeline = guard.stdin.take();
        let state = Mutex::new(State { guard, lifeline, child: None, ended: None, paused: false });
        Ok(Supervised { program, dir, state })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process id, while the process runs.
    pub fn pid(&self) -> Option<u32> {
        let mut state = self.state.lock();
        // An error means that the child cannot be waited for: then there is none.
        state.reap().ok().and_then(|ended| if ended { None } else { state.child.as_ref().map(Child::id) })
    }

    /// Starts `command` (its program, arguments, environment and working directory) in a process group of its own.
    ///
    /// Standard input is empty; output is appended to the files [`Supervised::stdout`] and [`Supervised::stderr`].
    pub fn spawn(&self, command: &Command, user: Option<User>) -> Result<(), SandboxError> {
        let mut state = self.state.lock();
        let reaped = state.reap().map_err(SandboxError::io("wait for", self.program))?;
        if !reaped {
            return Err(SandboxError::AlreadyRunning(self.program));
        }
        let mut gated = Command::new("/bin/sh");
        gated.args(["-c", GATE, "sh"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => gated.env(name, value),
                None => gated.env_remove(name),
            };
        }
        gated.current_dir(command.get_current_dir().unwrap_or(&self.dir)).process_group(0);
        gated.stdin(Stdio::piped()).stdout(self.append("stdout.log")?).stderr(self.append("stderr.log")?);
        if let Some(user) = user {
            gated.uid(user.uid).gid(user.gid);
        }
        let mut child = gated.spawn().map_err(SandboxError::io("start", command.get_program()))?;
        let gate = child.stdin.take();
        let pid = child.id();
        state.child = Some(child);
        state.ended = None;
        state.paused = false;
        // On an error the gate closes, and the shell behind it ends.
        state.tell_guard(pid).map_err(SandboxError::io("tell the guard of", command.get_program()))?;
        if let Some(mut gate) = gate {
            gate.write_all(b"go\n").map_err(SandboxError::io("start", command.get_program()))?;
        }
        Ok(())
    }

    /// How the process ended; `None` while it runs or before the first one.
    pub fn ended(&self) -> Result<Option<ExitStatus>, SandboxError> {
        let mut state = self.state.lock();
        state.reap().map_err(SandboxError::io("wait for", self.program))?;
        Ok(state.ended)
    }

    /// Waits until the process has ended.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, SandboxError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            self.pause_before(deadline, "end", limit).await?;
        }
    }

    /// Sends a signal to the process itself, not to its children.
    pub fn signal(&self, signal: Signal) -> Result<(), SandboxError> {
        let mut state = self.state.lock();
        let reaped = state.reap().map_err(SandboxError::io("wait for", self.program))?;
        match &state.child {
            Some(child) if !reaped => {
                send(child.id() as i32, signal).map_err(SandboxError::io("send a signal to", self.program))
            }
            _ => Err(SandboxError::NotRunning(self.program)),
        }
    }

    /// Kills the process and all its children (SIGKILL), and returns when they are gone. Not an error when it had
    /// ended before.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let family = self.stop_family(pid as i32).await?;
        for pid in &family {
            send(*pid, Signal::KILL).map_err(SandboxError::io("kill", self.program))?;
        }
        self.wait(KERNEL_LIMIT).await?;
        let deadline = Instant::now() + KERNEL_LIMIT;
        while !process_table::alive(&family).map_err(SandboxError::io("list processes", "/proc"))?.is_empty() {
            self.pause_before(deadline, "die", KERNEL_LIMIT).await?;
        }
        Ok(())
    }

    /// Stops the process and all its children in their tracks (SIGSTOP), and returns when they stand still.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        let pid = self.pid().ok_or(SandboxError::NotRunning(self.program))?;
        self.state.lock().paused = true;
        self.stop_family(pid as i32).await.map(drop)
    }

    /// Lets the process and all its children go on after [`Supervised::pause`].
    pub fn resume(&self) -> Result<(), SandboxError> {
        let mut state = self.state.lock();
        state.resume().map_err(SandboxError::io("resume", self.program))
    }

    /// The file with the process' standard output.
    pub fn stdout(&self) -> PathBuf {
        self.dir.join("stdout.log")
    }

    /// The file with the process' standard error.
    pub fn stderr(&self) -> PathBuf {
        self.dir.join("stderr.log")
    }

    /// The last `lines` lines of standard output and then of standard error.
    pub fn log_tail(&self, lines: usize) -> String {
        let mut tail = String::new();
        for path in [self.stdout(), self.stderr()] {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let all: Vec<&str> = text.lines().collect();
            for line in &all[all.len().saturating_sub(lines)..] {
                tail.push_str(line);
                tail.push('\n');
            }
        }
        tail
    }

    /// SIGSTOP for the process, then for its children: a stopped parent has no new ones. Returns them all.
    async fn stop_family(&self, pid: i32) -> Result<Vec<i32>, SandboxError> {
        let list = || SandboxError::io("list processes", "/proc");
        let stop = |pid| send(pid, Signal::STOP).map_err(SandboxError::io("stop", self.program));
        let deadline = Instant::now() + KERNEL_LIMIT;
        stop(pid)?;
        while !process_table::all_stopped(&[pid]).map_err(list())? {
            self.pause_before(deadline, "stand still", KERNEL_LIMIT).await?;
        }
        let mut family = process_table::descendants(pid).map_err(list())?;
        family.iter().try_for_each(|&pid| stop(pid))?;
        family.push(pid);
        while !process_table::all_stopped(&family).map_err(list())? {
            self.pause_before(deadline, "stand still", KERNEL_LIMIT).await?;
        }
        Ok(family)
    }

    /// Sleeps for one poll interval, or fails when `deadline` has passed.
    async fn pause_before(&self, deadline: Instant, goal: &'static str, limit: Duration) -> Result<(), SandboxError> {
        if Instant::now() >= deadline {
            return Err(self.timeout(goal, limit));
        }
        sleep(POLL).await;
        Ok(())
    }

    /// The error for something that did not happen in time.
    pub(super) fn timeout(&self, goal: &'static str, limit: Duration) -> SandboxError {
        SandboxError::Timeout { program: self.program, goal, limit, log: self.log_tail(20) }
    }

    /// The error for an end that should not have been.
    pub(super) fn exited(&self, program: &'static str, status: ExitStatus) -> SandboxError {
        SandboxError::Exited { program, status, log: self.log_tail(20) }
    }

    fn append(&self, name: &str) -> Result<File, SandboxError> {
        let path = self.dir.join(name);
        OpenOptions::new().create(true).append(true).open(&path).map_err(SandboxError::io("open", path))
    }
}

impl State {
    /// Takes note of the process' end; true when none runs.
    fn reap(&mut self) -> io::Result<bool> {
        if let Some(child) = &mut self.child {
            let Some(status) = child.try_wait()? else { return Ok(false) };
            self.child = None;
            self.ended = Some(status);
            // From now on the process id may be another's. Should the guard be gone, nobody would use it.
            let _ = self.tell_guard(0);
        }
        Ok(true)
    }

    fn tell_guard(&mut self, pid: u32) -> io::Result<()> {
        let lifeline = self.lifeline.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        // One write: a line that is cut off by our end would name another process.
        lifeline.write_all(format!("{pid}\n").as_bytes())
    }

    fn resume(&mut self) -> io::Result<()> {
        self.paused = false;
        let Some(child) = &self.child else { return Ok(()) };
        let pid = child.id() as i32;
        for pid in process_table::descendants(pid)?.into_iter().chain([pid]) {
            send(pid, Signal::CONT)?;
        }
        Ok(())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.paused {
            // Else Postgres would wait 5 s for its stopped children before it kills them.
            let _ = state.resume();
        }
        // There is nobody to tell of an error here, and nothing else to try.
        let guarded = matches!(state.guard.try_wait(), Ok(None));
        state.lifeline = None;
        if let Some(mut child) = state.child.take() {
            if !guarded {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        let _ = state.guard.wait();
        if !guarded {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Sends a signal; a process that is gone already is no error.
fn send(pid: i32, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}
