# The control plane: `kontext serve`, `dispatch`, `db upgrade`, `submit` …; no torch.
# Built from the repository's root: docker build --file deploy/control.Dockerfile .
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/kontext
COPY pyproject.toml constraints.txt README.md ./
COPY kontext_model/ kontext_model/
COPY orchestrator/ orchestrator/
COPY workers/ workers/
COPY migrations/ migrations/
RUN /opt/kontext/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/kontext kontext
COPY --from=build /opt/kontext /opt/kontext
ENV PATH=/opt/kontext/bin:$PATH \
    KONTEXT_HOME=/var/lib/kontext \
    PYTHONUNBUFFERED=1
USER kontext
WORKDIR /var/lib/kontext
EXPOSE 8080
ENTRYPOINT ["kontext"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
