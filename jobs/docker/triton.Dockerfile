# genrec-batch with Triton from nvidia-pytriton, on a CPU: what answers requests, and what follows the registry. From the
# repository's root:
#   docker build --file jobs/docker/triton.Dockerfile --tag genrec-batch:0.1.0-triton .
# jobs/kubernetes/serving runs both in a pod.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/genrec-batch
COPY jobs/triton/constraints.txt pyproject.toml README.md LICENSE /src/
COPY genrec_batch /src/genrec_batch/
RUN /opt/genrec-batch/bin/python -m pip install --constraint /src/constraints.txt '/src[cpu,store]' \
    && /opt/genrec-batch/bin/python -m pip install --constraint /src/constraints.txt --no-deps nvidia-pytriton \
    && /opt/genrec-batch/bin/python -m pip uninstall --yes pip \
    && chmod a+rx /opt/genrec-batch/lib/python3.11/site-packages/pytriton/tritonserver/bin/tritonserver
COPY jobs/triton/serve.sh jobs/triton/alive.py jobs/docker/compile-kernels.sh /opt/genrec-batch/bin/
RUN PATH=/opt/genrec-batch/bin:$PATH NUMBA_CACHE_DIR=/opt/genrec-batch/kernels compile-kernels.sh
COPY jobs/docker/genrec-batch /opt/genrec-batch/start/

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
RUN useradd --uid 10001 --user-group --no-create-home genrec
COPY --from=build /opt/genrec-batch /opt/genrec-batch
ENV PATH=/opt/genrec-batch/start:/opt/genrec-batch/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    GENREC_BATCH_CACHE=/tmp/genrec-batch \
    NUMBA_CACHE_DIR=/tmp/numba \
    TRITON_BACKENDS=/tmp/triton-backends
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["genrec-batch"]
CMD ["--help"]
