# A worker: `kontext worker --stages …`, with torch.
# Built from the repository's root: docker build --file deploy/worker.Dockerfile .
# On a machine without a GPU: --build-arg BASE=ubuntu:24.04 --build-arg KONTEXT_TORCH=torch==2.13.0+cpu, with the index
# that has this build in PIP_EXTRA_INDEX_URL.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python3 -m venv /opt/kontext
# The torch that fits the driver goes in first, in a layer of its own: it is large and seldom changes.
ARG KONTEXT_TORCH=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=
COPY constraints.txt ./
RUN /opt/kontext/bin/pip install --no-cache-dir --constraint constraints.txt "${KONTEXT_TORCH}"
COPY pyproject.toml README.md ./
COPY kontext_model/ kontext_model/
COPY orchestrator/ orchestrator/
COPY workers/ workers/
COPY migrations/ migrations/
ARG EXTRAS=worker
RUN /opt/kontext/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/kontext kontext
COPY --from=build /opt/kontext /opt/kontext
ENV PATH=/opt/kontext/bin:$PATH \
    KONTEXT_HOME=/var/lib/kontext \
    PYTHONUNBUFFERED=1
USER kontext
WORKDIR /var/lib/kontext
ENTRYPOINT ["kontext"]
CMD ["worker"]
