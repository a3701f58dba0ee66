# The suite on a CPU, from the folder of the project:
#   docker build -f docker/cpu.Dockerfile -t convnext .
#   docker run --rm -v "$PWD:/data" -v convnext-cache:/cache convnext predict cascade_convnext_t photo.jpg
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/convnext
COPY . .
# torch's builds for CPUs have an index of their own. mmcv asks for opencv-python, which needs libGL;
# the headless build holds the same modules.
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu . \
    && pip uninstall --yes opencv-python opencv-python-headless \
    && pip install --constraint constraints.txt opencv-python-headless

ENV XDG_CACHE_HOME=/cache
RUN useradd --create-home --uid 1000 user && mkdir /cache /data && chown user:user /cache /data
USER 1000
WORKDIR /data
ENTRYPOINT ["convnext"]
CMD ["--help"]
