# walcache as a container: the daemon alone, without servers.
#
#   docker build -t walcache .
#   docker run -v ./walcache.toml:/etc/walcache/walcache.toml:ro -p 8080:8080 walcache
#
# In its configuration, [http] listen = "0.0.0.0:8080" (by default it listens on the loopback interface only).

FROM rust:1-bookworm AS build
WORKDIR /src
# ring, the TLS provider, compiles C: the image has the compiler.
COPY . .
# The caches keep the dependencies between builds; the binary has to leave them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin walcache \
    && cp target/release/walcache /usr/local/bin/walcache

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin walcache
COPY --from=build /usr/local/bin/walcache /usr/local/bin/walcache
USER walcache
ENV WALCACHE_CONFIG=/etc/walcache/walcache.toml
# 8080: reads. 9090: health, metrics and status; not for the outside.
EXPOSE 8080 9090
# On SIGTERM it finishes its batch and drains requests.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:9090/livez"]
ENTRYPOINT ["walcache"]
CMD ["run"]
