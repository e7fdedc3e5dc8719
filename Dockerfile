# syntax=docker/dockerfile:1
# The gateway alone: no torch, no engine.  deploy/compose.yaml puts vLLM's own image beside it.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/gateway
WORKDIR /src
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY adapters adapters
# What only builds stays behind.
RUN /opt/gateway/bin/pip install --no-deps --no-build-isolation . \
    && /opt/gateway/bin/pip uninstall --yes setuptools pip

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="lora-gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
# The only place that is written to: the database, and the store of adapters, which engines read.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin gateway \
    && install -d -o gateway -g gateway /var/lib/gateway /var/lib/gateway/adapters
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/gateway
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not urllib: it would ask a proxy that the container engine puts into the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.yaml", "--host", "0.0.0.0"]
