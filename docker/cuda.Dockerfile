# The suite on NVIDIA GPUs, from the folder of the project; the machine needs a driver for the CUDA
# that torch was built with, and NVIDIA's container toolkit:
#   docker build -f docker/cuda.Dockerfile -t convnext-cuda .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" -v convnext-cache:/cache convnext-cuda train cascade_convnext_t
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# `train --compile` builds a launcher for each of its kernels.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/convnext
COPY . .
# PyPI's torch brings CUDA's libraries. mmcv asks for opencv-python, which needs libGL; the headless
# build holds the same modules.
RUN pip install --constraint constraints.txt . \
    && pip uninstall --yes opencv-python opencv-python-headless \
    && pip install --constraint constraints.txt opencv-python-headless

ENV XDG_CACHE_HOME=/cache NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 user && mkdir /cache /data && chown user:user /cache /data
USER 1000
WORKDIR /data
ENTRYPOINT ["convnext"]
CMD ["--help"]
