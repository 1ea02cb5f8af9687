# The HTTP service of one run: docker build -t dualcaps . ; docker run -p 8000:8000 -v ./runs/photos:/run-folder:ro dualcaps
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src src
# The CPU build of torch; another index, or none, for a GPU.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[serve]" \
    && useradd --create-home dualcaps
USER dualcaps
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz')"
ENTRYPOINT ["dualcaps", "serve", "/run-folder", "--host", "0.0.0.0"]
