# The server on a CPU:  docker build -t refseg .  &&  docker run --rm -p 8000:8000 refseg
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir ".[serve]" \
    && useradd --create-home refseg

USER refseg
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["refseg", "serve", "--host", "0.0.0.0"]
