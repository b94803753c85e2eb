//! (c) Reads that L1 answers, against nginx serving a file of the same size.

use anyhow::{Context, Result, ensure};

use crate::harness::{Daemon, eventually};
use crate::nginx::{Load, Nginx, Tools};
use crate::report::{Aim, Figure, Report};
use crate::shop::Shop;

const ROWS: usize = 1000;
const PATH: &str = "/v1/product/1";
const AIM: f64 = 0.8;

/// Measures in alternating rounds, and reports medians.
pub async fn measure(report: &mut Report, tools: &Tools, quick: bool) -> Result<()> {
    let (rounds, seconds) = if quick { (1, 2) } else { (3, 8) };
    eprintln!("http: {rounds} alternating round(s) of {seconds} s");
    let shop = Shop::start(ROWS).await?;
    let daemon = Daemon::start(&shop.config()).await;
    daemon.wait_ready().await;
    let http = daemon.http();
    let row = eventually("have a row in L1", async || {
        let response = http.get(PATH).await.expect(200);
        if response.header("x-cache") == "HIT-L1" { Ok(response.body) } else { Err(response.text()) }
    })
    .await;
    let expected: String =
        shop.sql.query_one("SELECT row_to_json(p)::text FROM product p WHERE id = 1", &[]).await?.get(0);
    let (value, expected): (serde_json::Value, serde_json::Value) =
        (serde_json::from_slice(&row)?, serde_json::from_str(&expected)?);
    ensure!(value == expected, "WRONG: {PATH} is {value}, and {expected} in Postgres");
    let nginx = Nginx::start(tools, &row).await?;
    let url = format!("http://{}{PATH}", daemon.http_address());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(tools.load(&nginx.url, nginx.pid, seconds).await?);
        ours.push(tools.load(&url, daemon.pid().context("walcache has ended")?, seconds).await?);
    }
    ensure!(http.get(PATH).await.header("x-cache") == "HIT-L1", "BROKEN: the row is no longer in L1");
    for (name, loads) in [("nginx", &theirs), ("walcache", &ours)] {
        let rates: Vec<String> = loads.iter().map(|load| format!("{:.0}", load.rate)).collect();
        eprintln!("  {name}: {} requests/s", rates.join(", "));
    }
    let mut figure = |what: &str, of: fn(&Load) -> f64, unit, aim| -> Result<()> {
        let limit = Some((median(&theirs, of)?, "nginx, static file"));
        report.figure(&Figure { what, ours: median(&ours, of)?, limit, unit, aim });
        Ok(())
    };
    let what = format!("HTTP, L1 hits of {} B, 64 connections", row.len());
    figure(&what, |load| load.rate, "reads/s", Some(Aim::Ratio(AIM)))?;
    figure("  CPU of a read", |load| load.cpu, "us", None)?;
    figure("  p50", |load| load.p50, "ms", None)?;
    figure("  p99", |load| load.p99, "ms", None)?;
    let status = daemon.terminate().await;
    ensure!(status.success(), "walcache ended with {status}: {}", daemon.log());
    Ok(())
}

fn median(loads: &[Load], of: fn(&Load) -> f64) -> Result<f64> {
    let mut values: Vec<f64> = loads.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no rounds")
}
