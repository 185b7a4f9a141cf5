# mae_jax for NVIDIA GPUs. The driver comes from the host (NVIDIA Container Toolkit), CUDA from pip.
# `--build-arg EXTRA=tpu` is for TPUs.
#
#     docker build --tag mae_jax .
#     docker run --rm --gpus all --shm-size=8g --volume /data:/data --volume "$PWD/runs:/workspace/runs" \
#         mae_jax train folder --config.dataset.path=/data/photos
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
COPY . /source
ARG EXTRA=cuda
RUN pip install --no-cache-dir "/source[$EXTRA]" -c /source/constraints/oldest.txt

ENTRYPOINT ["mae-jax"]
CMD ["--help"]
