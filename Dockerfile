# syntax=docker/dockerfile:1
# The image of a run. From the root of the checkout:
#
#   docker build --build-arg ACCELERATOR=tpu --tag=IMAGE .
#   docker run --rm --shm-size=16g IMAGE train --config=demo --workdir=/tmp/run
#
# ACCELERATOR is cpu, tpu, cuda12 or cuda13; another one has no stage user-ACCELERATOR.
# --target=beam makes the image of Apache Beam's workers instead.
ARG ACCELERATOR=cpu
ARG PYTHON=3.12
ARG BEAM=2.77.0

FROM python:${PYTHON}-slim-bookworm AS dependencies
ARG ACCELERATOR
ARG EXTRAS=datasets,encoders,gcs
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
# Before the sources, so that a change of them leaves this layer, by far the largest, as it is.
COPY pyproject.toml launch/requirements.py ./
RUN --mount=type=cache,target=/var/cache/pip \
    python requirements.py "${ACCELERATOR},${EXTRAS}" > requirements.txt \
    && pip install --requirement=requirements.txt

FROM dependencies AS package
COPY setup.py README.md LICENSE ./
COPY configs configs
COPY modality_forcing modality_forcing
RUN --mount=type=cache,target=/var/cache/pip pip wheel --no-deps --wheel-dir=wheels .

FROM python:${PYTHON}-slim-bookworm AS runtime
# tini passes signals on and reaps loader processes: as process 1, python would ignore SIGTERM
# wherever it has no handler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid=1000 mforce
# The driver of an NVIDIA GPU comes from the host, the libraries of CUDA with jax.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=package,source=/build/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
WORKDIR /workspace
RUN chown mforce /workspace
ENTRYPOINT ["tini", "--", "mforce"]
CMD ["--help"]

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam-sdk
FROM runtime AS beam
ARG BEAM
RUN pip install --no-cache-dir "apache-beam[gcp]==${BEAM}"
COPY --from=beam-sdk /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM runtime AS user-cpu
USER mforce
FROM user-cpu AS user-cuda12
FROM user-cpu AS user-cuda13
# The device files of a TPU belong to root.
FROM runtime AS user-tpu

FROM user-${ACCELERATOR} AS run
