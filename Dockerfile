# ttac with onnxruntime, for x86-64 and arm64: `docker build -t ttac .`, then `docker run --rm -v "$PWD:/work" ttac doctor`.
# For the other architecture: `docker buildx build --platform linux/arm64 -t ttac .`
FROM python:3.12-slim AS build
COPY . /source
# The extra `ort` has wheels for both architectures; `--build-arg EXTRAS=ort-training` is for x86-64.
ARG EXTRAS=ort
RUN python -m venv /opt/ttac && /opt/ttac/bin/pip install --no-cache-dir "/source[$EXTRAS]"

FROM python:3.12-slim
COPY --from=build /opt/ttac /opt/ttac
ENV PATH=/opt/ttac/bin:$PATH
RUN useradd --create-home ttac
USER ttac
WORKDIR /work
ENTRYPOINT ["ttac"]
CMD ["--help"]
