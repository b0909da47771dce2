# The driver: the flow, its tasks and every step that runs without a GPU. Build it from the root of the checkout:
#   docker build -f docker/driver.Dockerfile -t nlrewrite-driver .
# Run a worker with it, against a server with Postgres, with the store on a volume or in a bucket:
#   docker run -e PREFECT_API_URL=http://server:4200/api -v store:/opt/nlrewrite/store nlrewrite-driver

FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
WORKDIR /build
COPY pyproject.toml README.md ./
COPY constraints constraints
COPY nlrewrite nlrewrite
RUN pip install . -c constraints/cpu.txt && pip check

FROM python:3.11.13-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_HOME=/opt/nlrewrite/.prefect
RUN useradd --create-home --uid 1000 driver \
    && install --directory --owner driver --group driver \
       /opt/nlrewrite /opt/nlrewrite/.prefect /opt/nlrewrite/store /opt/nlrewrite/runs
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/nlrewrite
COPY --chown=driver:driver prefect.toml ./
COPY --chown=driver:driver tasks tasks
COPY --chown=driver:driver flows flows
COPY --chown=driver:driver deployments deployments
USER driver
RUN prefect version && nlrewrite --help && python -c "import flows.rewrite"
CMD ["prefect", "worker", "start", "--pool", "cpu"]
