//! What the daemon's own metrics say, read from `/metrics` as any Prometheus would.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::client::Http;
use super::error::DemoError;

/// All metrics at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// By name and labels, as rendered.
    values: HashMap<String, f64>,
}

impl Sample {
    /// Scrapes the admin listener.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn scrape(admin: &Http) -> Result<Sample, DemoError> {
        let reply = admin.get("/metrics", None).await?;
        Ok(Sample::parse(&String::from_utf8_lossy(&reply.body)))
    }

    fn parse(text: &str) -> Sample {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Sample { at: Instant::now(), values: values.collect() }
    }

    /// The sum of a metric's values that bear all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let bears = |series: &str| labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")));
        self.series(name).filter(|(series, _)| bears(series)).map(|(_, value)| value).sum()
    }

    /// The labels, as rendered, and values of a metric.
    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.values.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('{'))?;
            Some((labels, *value))
        })
    }
}

/// What happened between two samples.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The earlier one; without it, since the start.
    pub from: Option<&'a Sample>,
    /// The later one.
    pub to: &'a Sample,
}

impl Span<'_> {
    /// By how much a counter grew.
    pub fn grown(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.to.sum(name, labels) - self.from.map_or(0.0, |from| from.sum(name, labels))
    }

    /// The value below which `share` of a histogram's observations lie, interpolated within its bucket; `None` without
    /// observations.
    pub fn quantile(&self, name: &str, share: f64) -> Option<Duration> {
        let bucket = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = (self.to.series(&bucket))
            .filter_map(|(labels, count)| {
                let bound = labels.split("le=\"").nth(1)?.split('"').next()?.parse().ok()?;
                let before = self.from.and_then(|from| from.values.get(&format!("{bucket}{labels}")));
                Some((bound, count - before.unwrap_or(&0.0)))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = buckets.last().filter(|(_, all)| *all > 0.0)?.1 * share;
        let at = buckets.iter().position(|(_, count)| *count >= wanted)?;
        let (lower, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
        let (upper, count) = buckets[at];
        let seconds =
            if upper.is_finite() { lower + (upper - lower) * (wanted - below) / (count - below) } else { lower };
        Some(Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "# HELP n help\nn{a=\"x\",b=\"1\"} 2\nn{a=\"y\",b=\"1\"} 5\nnn 7\n\
        h_bucket{le=\"0.001\"} 1\nh_bucket{le=\"0.01\"} 1\nh_bucket{le=\"+Inf\"} 1\n";
    const LATER: &str = "n{a=\"x\",b=\"1\"} 3\nn{a=\"y\",b=\"1\"} 9\n\
        h_bucket{le=\"0.001\"} 2\nh_bucket{le=\"0.01\"} 11\nh_bucket{le=\"+Inf\"} 11\n";

    #[test]
    fn counters_and_quantiles_between_samples() {
        let (earlier, later) = (Sample::parse(EARLIER), Sample::parse(LATER));
        let span = Span { from: Some(&earlier), to: &later };
        assert_eq!(span.grown("n", &[]), 5.0);
        assert_eq!(span.grown("n", &[("a", "y")]), 4.0);
        // 10 observations: 1 up to 1 ms, 9 up to 10 ms; the median is the fourth of those.
        assert_eq!(span.quantile("h", 0.5), Some(Duration::from_millis(5)));
        assert_eq!(span.quantile("h", 0.1), Some(Duration::from_millis(1)));
        assert_eq!(Span { from: Some(&later), to: &later }.quantile("h", 0.5), None);
        assert_eq!(span.quantile("none", 0.5), None);
    }
}
