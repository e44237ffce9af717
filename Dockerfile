# docker build -t crlf .
# docker run --rm -v "$PWD:/images" crlf run /images/PHOTOS --out /images/RUN      with --gpus all on an NVIDIA GPU
FROM python:3.12-slim

# Where pip finds torch. Empty: its usual wheels, which on Linux hold CUDA and run on a CPU too. The index of PyTorch's
# CPU wheels makes the image some gigabytes smaller: --build-arg TORCH_INDEX=URL.
ARG TORCH_INDEX=""

WORKDIR /crlf
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
# hadolint ignore=DL3059
RUN pip install --no-cache-dir -e .

WORKDIR /images
ENTRYPOINT ["crlf"]
CMD ["--help"]
