# An image with Python, the launcher and its dependencies, for a non-root user.
#
#   docker build --tag NAME:TAG .                                                                  GPUs: CUDA, DeepSpeed, DALI
#   docker build --tag NAME:TAG --build-arg BASE=python:3.11-slim --build-arg EXTRAS=ray,demo .    no GPUs
#
# BASE must have apt and bash. If it has no Python (3.11 to 3.13), the distribution's Python is installed.
# For a reproducible base image, give BASE with a digest (NAME:TAG@sha256:...).
ARG BASE=nvidia/cuda:13.0.0-base-ubuntu24.04

FROM ${BASE} AS base
# apt packages are not pinned, because the archive keeps only the newest versions.
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
# Ubuntu's image already has a user 1000: --non-unique adds a second name for the same number.
RUN groupadd --non-unique --gid 1000 launcher \
    && useradd --non-unique --uid 1000 --gid 1000 --create-home launcher
COPY --from=build /opt/launcher /opt/launcher
USER 1000:1000
WORKDIR /home/launcher
ENTRYPOINT []
CMD ["launcher", "--help"]
