//! Whether Redis can be L2: reached, new enough, writable, and set up to evict rather than to refuse.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};

use super::finding::Finding;
use crate::config::L2Config;

/// The oldest version whose scripts have the flags that ours declare.
const OLDEST: (u32, u32) = (7, 0);

/// What keeps this Redis from being L2, or makes it a poor one.
pub async fn inspect_l2(config: &L2Config) -> Vec<Finding> {
    match info(config).await {
        Ok(info) => findings(&info),
        Err(error) => {
            let remedy = "see that the server in l2.url runs, can be reached from here, lets this user in, and gives it the \
                          rights that README.md lists, INFO among them; without Redis reads go to L1 and Postgres";
            vec![Finding::error("l2_unavailable", "l2", format!("Redis does not answer INFO: {error}"), remedy)]
        }
    }
}

async fn info(config: &L2Config) -> Result<String, RedisError> {
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout));
    let client = Client::open(config.url.expose())?;
    let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection_with_config(&limits).await?;
    redis::cmd("INFO").query_async(&mut connection).await
}

/// Judges what INFO says.
fn findings(info: &str) -> Vec<Finding> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let mut found = Vec::new();
    let version = field("redis_version").unwrap_or("unknown");
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    if parts.next().zip(parts.next()).is_none_or(|version| version < OLDEST) {
        let what = format!("its version is {version}; scripts need 7.0 or later");
        found.push(Finding::error("l2_version", "l2", what, "use Redis 7.0 or later, or Valkey"));
    }
    if field("role").is_some_and(|role| role != "master") {
        let what = "it is a replica, which takes no writes";
        found.push(Finding::error("l2_replica", "l2", what, "let l2.url lead to the primary"));
    }
    if field("cluster_enabled") == Some("1") {
        let what = "it is a node of a Redis Cluster, which this version does not support";
        found.push(Finding::error("l2_cluster", "l2", what, "use a Redis without cluster mode"));
    }
    if field("maxmemory_policy") == Some("noeviction") && field("maxmemory").is_some_and(|bytes| bytes != "0") {
        let what = "its memory is limited and maxmemory-policy is noeviction: once full, it takes no new entries";
        let remedy =
            "CONFIG SET maxmemory-policy volatile-lfu: every entry has a ttl, and the fence, which has none, stays";
        found.push(Finding::warning("l2_noeviction", "l2", what, remedy));
    }
    if field("maxmemory_policy").is_some_and(|policy| policy.starts_with("allkeys")) {
        let what = "its maxmemory-policy may evict the fence, and with it everything that is cached";
        let remedy =
            "CONFIG SET maxmemory-policy volatile-lfu: every entry has a ttl, and the fence, which has none, stays";
        found.push(Finding::warning("l2_evicts_fence", "l2", what, remedy));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(info: &str) -> Vec<&'static str> {
        findings(info).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_info_says_is_judged() {
        let good = "# Server\r\nredis_version:7.0.15\r\nrole:master\r\ncluster_enabled:0\r\nmaxmemory:100\r\n\
                    maxmemory_policy:volatile-lfu\r\n";
        assert_eq!(codes(good), [""; 0]);
        assert_eq!(codes(&good.replace("7.0.15", "10.1.0")), [""; 0]);
        assert_eq!(codes(&good.replace("7.0.15", "6.2.9")), ["l2_version"]);
        assert_eq!(codes(&good.replace("role:master", "role:slave")), ["l2_replica"]);
        assert_eq!(codes(&good.replace("cluster_enabled:0", "cluster_enabled:1")), ["l2_cluster"]);
        assert_eq!(codes(&good.replace("volatile-lfu", "noeviction")), ["l2_noeviction"]);
        assert_eq!(codes(&good.replace("volatile-lfu", "noeviction").replace(":100", ":0")), [""; 0]);
        assert_eq!(codes(&good.replace("volatile-lfu", "allkeys-lru")), ["l2_evicts_fence"]);
        assert_eq!(codes(""), ["l2_version"]);
    }
}
