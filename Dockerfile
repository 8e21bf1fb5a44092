# Images with datafree, for a CPU and for NVIDIA GPUs:
#
#     docker build --target cpu -t datafree:cpu .
#     docker build --target gpu -t datafree:gpu .
#
# Each has the locked set of its name in requirements/. docs/clusters.md says how to run them.
# To follow security fixes, name a later image of Python 3.11 to 3.13:
#     --build-arg BASE=docker.io/library/python:3.12.X-slim-trixie
ARG BASE=docker.io/library/python:3.12.12-slim-trixie

# What both have. KubeRay starts `ray` in a login shell, where /etc/profile sets PATH anew, and its
# probes are `bash -c "wget ..."`. The user has the number that Ray's own images give theirs.
FROM ${BASE} AS base
# Debian keeps no old versions that could be pinned.
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --gid 100 --create-home --shell /bin/bash datafree \
    && install --directory --owner 1000 --group 100 /shared \
    && echo 'export PATH=/opt/datafree/bin:$PATH' >/etc/profile.d/datafree.sh
ENV PATH=/opt/datafree/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /datafree

# Only here is anything built or downloaded: pip and setuptools make the environment.
FROM base AS builder
RUN python3 -m venv /opt/datafree
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

FROM builder AS cpu-builder
COPY requirements/base.txt requirements/cpu.txt requirements/
# It has torch's build without CUDA; base.txt says why --no-deps.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --only-binary :all: --extra-index-url "$TORCH_INDEX" \
    -r requirements/cpu.txt
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && pip uninstall -y pip

FROM builder AS gpu-builder
COPY requirements/gpu.txt requirements/
RUN pip install --no-deps --only-binary :all: -r requirements/gpu.txt
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && pip uninstall -y pip

FROM base AS cpu
COPY --from=cpu-builder /opt/datafree /opt/datafree
COPY --from=cpu-builder /datafree /datafree
USER 1000:100
CMD ["datafree", "--help"]

FROM base AS gpu
# Triton, with which vLLM runs, compiles a launcher for each kernel where it runs: without a C
# compiler there is no engine. It is the one tool to build with that stays in the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# NVIDIA's container runtime mounts the driver; CUDA's libraries come with the packages.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-builder /opt/datafree /opt/datafree
COPY --from=gpu-builder /datafree /datafree
USER 1000:100
CMD ["datafree", "--help"]
