# Webserver, daemon and code location in one container, with ORCHESTRATOR_DEPLOYMENT and the other settings in .env:
# `docker run --env-file .env -e UI_INSECURE=true -v orchestrator:/var/lib/orchestrator -p 127.0.0.1:3000:3000 …`
FROM python:3.11-slim

# git: Dagster's code links; tini: signals reach the children, and zombies are reaped
RUN apt-get update && apt-get install -y --no-install-recommends git tini && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/orchestrator
COPY pyproject.toml requirements.lock README.md ./
# uv as the lock has it, with its hash
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock >/tmp/uv.txt \
  && pip install --no-cache-dir --require-hashes --requirement /tmp/uv.txt && rm /tmp/uv.txt
COPY orchestrator ./orchestrator
COPY workspace.yaml dagster.yaml ./
# The lock only constrains here: the image gets what the orchestrator needs, not the sandbox and the test tools.
# `make image-check` runs this very line in an environment of its own. Compiled, because the user below may not write
# what Python compiles, and each run would compile all of it again.
RUN uv pip install --system --no-cache --compile-bytecode --constraint requirements.lock --build-constraint requirements.lock --editable .
RUN python -m compileall -q orchestrator

# Runs, schedules and logs live here: mount a volume. Secrets come from the environment, never from the image.
ENV DAGSTER_HOME=/var/lib/orchestrator
RUN useradd --create-home --uid 10001 orchestrator && install -d -o orchestrator "$DAGSTER_HOME"
USER orchestrator
VOLUME /var/lib/orchestrator
EXPOSE 3000
# Instances are known by this name. The default, the host name, would be another one in the next container, and what
# this one launched would be nobody's.
ENTRYPOINT ["tini", "-g", "--", "sh", "-c", ": \"${ORCHESTRATOR_DEPLOYMENT:?is not set: give this installation a name that lasts, as in docker run -e ORCHESTRATOR_DEPLOYMENT=team-a, for the instances it launches are found again by it}\"; exec \"$@\"", "sh"]
# It does not start without UI_TOKEN, nor without TLS unless UI_INSECURE says that nobody reads on the way, as when the
# port is published on loopback.
CMD ["orchestrator", "serve", "--host", "0.0.0.0", "--port", "3000"]
