# An image that trains: Python, the launcher and all it needs, for a user who is not root.
#
#   docker build --tag NAME:TAG .                                                             GPUs: CUDA, DeepSpeed, DALI
#   docker build --tag NAME:TAG --build-arg BASE=python:3.11-slim --build-arg EXTRAS=ray .    no GPUs
#
# BASE needs apt and bash; it may bring a Python of 3.11 to 3.13, and gets Debian's or Ubuntu's own where it does not.
# Give BASE with a digest (NAME:TAG@sha256:...) for an image that can be built again bit by bit.
ARG BASE=nvidia/cuda:13.0.0-base-ubuntu24.04

FROM ${BASE} AS base
# Versions of apt's packages are the base image's to pin: its archive keeps only the newest.
# hadolint ignore=DL3008
RUN if ! command -v python3 > /dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi
ENV PATH=/opt/launcher/bin:$PATH PYTHONUNBUFFERED=1

FROM base AS build
ARG EXTRAS=all
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs ./configs
COPY launcher ./launcher
COPY resnet_dist ./resnet_dist
COPY cluster ./cluster
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/launcher \
    && /opt/launcher/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM base
# Ubuntu's image has a user 1000 of its own: the number is what counts, and the name is for programs that ask for one.
RUN groupadd --non-unique --gid 1000 launcher \
    && useradd --non-unique --uid 1000 --gid 1000 --create-home launcher
COPY --from=build /opt/launcher /opt/launcher
USER 1000:1000
WORKDIR /home/launcher
ENTRYPOINT []
CMD ["launcher", "--help"]
