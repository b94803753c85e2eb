//! A private nginx that serves one file, and wrk to load it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use walcache::sandbox::{LastSignal, Supervised, free_port};

use crate::harness::{Http, eventually};
use crate::process;

/// The programs that only the benches need.
pub struct Tools {
    /// The server to compare with.
    pub nginx: PathBuf,
    wrk: PathBuf,
}

impl Tools {
    /// Looks for them.
    pub fn find() -> Result<Tools> {
        let find = |name: &'static str| {
            // Debian has nginx in /usr/sbin, which a user's PATH may lack.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
            let found = dirs.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()));
            found.with_context(|| format!("{name} is not installed: run `scripts/install-servers --bench`"))
        };
        Ok(Tools { nginx: find("nginx")?, wrk: find("wrk")? })
    }

    /// Loads `url` with 64 connections.
    ///
    /// `pid` is the server's process, whose children serve too.
    pub async fn load(&self, url: &str, pid: u32, seconds: u32) -> Result<Load> {
        let before = process::family_cpu_seconds(pid)?;
        let mut wrk = Command::new(&self.wrk);
        wrk.args(["-t2", "-c64", "--latency"]).arg(format!("-d{seconds}s")).arg(url);
        let output = tokio::task::spawn_blocking(move || wrk.output()).await?.context("run wrk")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
        let failures = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        ensure!(failures.is_none(), "BROKEN: {url}: {}", failures.unwrap_or_default());
        let cpu = process::family_cpu_seconds(pid)? - before;
        Load::parse(&text, cpu).with_context(|| format!("wrk printed something else than expected:\n{text}"))
    }
}

/// What wrk measured.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests in a second.
    pub rate: f64,
    /// The median latency, in milliseconds.
    pub p50: f64,
    /// The 99th percentile, in milliseconds.
    pub p99: f64,
    /// CPU that the server spent on a request, in microseconds: what it costs, however busy the machine is.
    pub cpu: f64,
}

impl Load {
    fn parse(text: &str, cpu_seconds: f64) -> Option<Load> {
        let after = |head: &str| text.lines().find_map(|line| line.trim().strip_prefix(head)).map(str::trim);
        let millis = |text: &str| {
            let digits = text.trim_end_matches(char::is_alphabetic);
            let factor = match &text[digits.len()..] {
                "us" => 0.001,
                "ms" => 1.0,
                "s" => 1000.0,
                _ => return None,
            };
            Some(digits.parse::<f64>().ok()? * factor)
        };
        let requests = text.lines().find(|line| line.contains(" requests in "))?.split_whitespace().next()?;
        Some(Load {
            cpu: cpu_seconds * 1e6 / requests.parse::<f64>().ok()?,
            rate: after("Requests/sec:")?.parse().ok()?,
            p50: millis(after("50%")?)?,
            p99: millis(after("99%")?)?,
        })
    }
}

/// A running nginx.
pub struct Nginx {
    /// Where it serves the file.
    pub url: String,
    /// The master's process id; the workers are its children.
    pub pid: u32,
    // Its end is nginx' end.
    _supervised: Supervised,
}

impl Nginx {
    /// Starts it, serving `body`; returns when it answers.
    pub async fn start(tools: &Tools, body: &[u8]) -> Result<Nginx> {
        // SIGQUIT reaches the workers through the master, SIGKILL would not.
        let supervised = Supervised::new("nginx", LastSignal::Quit, None)?;
        let dir = supervised.dir();
        let port = free_port();
        fs::create_dir(dir.join("www"))?;
        fs::write(dir.join("www/row.json"), body)?;
        let file = dir.join("nginx.conf");
        fs::write(&file, config(dir, port))?;
        let mut command = Command::new(&tools.nginx);
        command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(&file);
        supervised.spawn(&command, None)?;
        let address = format!("127.0.0.1:{port}");
        let http = Http::new(&address);
        let response = eventually("nginx to answer", async || {
            let response = http.send(hyper::Method::GET, "/row.json", &[], bytes::Bytes::new()).await;
            response.map_err(|error| format!("{error}\n{}", supervised.log_tail(10)))
        })
        .await;
        ensure!(response.body == body, "nginx serves something else: {}", response.text());
        let pid = supervised.pid().context("nginx has ended")?;
        Ok(Nginx { url: format!("http://{address}/row.json"), pid, _supervised: supervised })
    }
}

/// As fast as nginx serves a small file. A worker for each core, as walcache has a thread for each. No sendfile: a small
/// file then leaves together with its head in one system call (3.9 against 4.9 us of CPU a request; with tcp_nopush 5.2).
fn config(dir: &Path, port: u16) -> String {
    // Workers of a master that runs as root would not get at the private directory.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let dir = dir.display();
    format!(
        "daemon off;\n\
         {user}\n\
         worker_processes {workers};\n\
         pid {dir}/nginx.pid;\n\
         error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
             access_log off;\n\
             sendfile off;\n\
             tcp_nodelay on;\n\
             keepalive_requests 1000000000;\n\
             open_file_cache max=16 inactive=1h;\n\
             open_file_cache_valid 1h;\n\
             types {{ application/json json; }}\n\
             client_body_temp_path {dir}/body;\n\
             proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi;\n\
             uwsgi_temp_path {dir}/uwsgi;\n\
             scgi_temp_path {dir}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {dir}/www; }}\n\
         }}\n"
    )
}
