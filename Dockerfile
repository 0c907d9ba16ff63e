# The page and the command line. For a CPU, or for an NVIDIA card:
#   docker build -t sdlora .        (a card: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128)
#   docker run -p 127.0.0.1:7860:7860 -e SDLORA_WEBUI_AUTH=me:a-password -v sdlora:/data sdlora      (a card: --gpus all)
# Without a card and a page: docker run -v sdlora:/data sdlora sdlora train --preset demo.yaml
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 sdlora && mkdir /data && chown sdlora /data
WORKDIR /opt/sdlora

# torch by itself: it is most of the size, and changes least.
COPY constraints.txt .
RUN pip install --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY sdlora sdlora
COPY webui webui
COPY presets presets
COPY sample_images sample_images
RUN pip install -c constraints.txt '.[all]'

USER sdlora
# Models, caches and the studio outlive the container.
ENV HF_HOME=/data/huggingface SDLORA_CACHE=/data/cache
VOLUME /data
WORKDIR /data
EXPOSE 7860
# The login page comes with 401.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('localhost', 7860, timeout=5); c.request('GET', '/'); assert c.getresponse().status in (200, 401)"]
CMD ["sdlora", "webui", "--root", "/data/studio", "--host", "0.0.0.0", "--port", "7860", "--no-browser"]
