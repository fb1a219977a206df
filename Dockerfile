# The serving image: decode, run and answer over HTTP. No torch, no compiler, no shell script.
#
#   docker build -t pocketdx .
#   docker run --rm --read-only --cap-drop ALL -p 8000:8000 -v ./bundle/model.onnx:/models/model.onnx:ro pocketdx
#
# Another file of a mounted folder, with options:
#   docker run --rm --read-only -p 8000:8000 -v ./bundle:/models:ro pocketdx /models/chest.onnx --threads 4
#
# A model inside the image instead: two lines in a Dockerfile of your own.
#   FROM pocketdx
#   COPY model.onnx /models/model.onnx

FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/pocketdx
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY runtime/pocketdx_runtime runtime/pocketdx_runtime
COPY train/pocketdx_train train/pocketdx_train
COPY export/pocketdx_export export/pocketdx_export
COPY serve/pocketdx_serve serve/pocketdx_serve
RUN /opt/pocketdx/bin/pip install --no-cache-dir ".[serve,heic,dicom]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin pocketdx
COPY --from=build /opt/pocketdx /opt/pocketdx
ENV PATH=/opt/pocketdx/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /models
# By number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
# Exec form: the server is process 1 and gets SIGTERM itself; it then finishes what it has and exits with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pocketdx", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/models/model.onnx"]
