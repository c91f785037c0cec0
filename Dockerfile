# The server without torch: it runs a model that `adtr export` wrote as ONNX, on the CPU.
#
#   docker build -t adtr .
#   docker run --read-only -p 8000:8000 -e ADTR_TOKEN -v ./models:/models:ro adtr
FROM python:3.12-slim

COPY docker/requirements.txt pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install --no-cache-dir --no-compile -r /build/requirements.txt && pip install --no-cache-dir --no-compile --no-deps /build && rm -r /build && useradd --no-create-home --uid 10001 adtr

USER adtr
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
ENTRYPOINT ["adtr", "serve"]
CMD ["/models/model.onnx", "--host", "0.0.0.0", "--port", "8000"]
