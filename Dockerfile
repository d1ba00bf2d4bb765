# The orchestrator as one container: Dagster's webserver, daemon and code location behind the login.
# docs/container.md: how to build and run it; deploy/compose: with everything that it needs around it.

# The tag is moved to other contents, the digest is not. It is that of docker-library/repo-info, file
# repos/python/remote/3.11.16-slim-bookworm.md at commit 422f3cfe488dc9ae394c5058b27db617f72c91db.
# Any Debian with Python 3.11 to 3.13 and its venv will do.
ARG BASE_IMAGE=python:3.11.16-slim-bookworm@sha256:c425d915a89a6dcd3183b1797ad9bd8878caff5a417f6371c8df93c8ea8b727f

FROM ${BASE_IMAGE} AS build
# Where packages come from; its login is the secret `netrc`. Empty: where pip and uv look by themselves.
ARG INDEX_URL=""
# Parts of ours that are off by default, a comma list: see optional-dependencies in pyproject.toml.
ARG EXTRAS=""
# Requirement files beside this Dockerfile, named *requirements*.txt: a team's public packages, and its own.
ARG REQUIREMENTS=""
ARG CUSTOM_REQUIREMENTS=""
RUN case "$INDEX_URL" in *@*) echo "INDEX_URL holds a login, which the builder would keep: give it as --secret id=netrc" >&2; exit 1 ;; esac
# For `strip`, below; it stays behind in this stage, as uv does.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/orchestrator
COPY pyproject.toml requirements.lock README.md ./
# uv as the lock has it, with its hash; it stays behind in this stage. A secret is there during its command, and in no layer.
RUN --mount=type=secret,id=netrc,target=/root/.netrc \
  sed -n '/^uv==/,/[^\\]$/p' requirements.lock >/tmp/uv.txt \
  && python3 -m venv /opt/uv && python3 -m venv --without-pip /opt/venv \
  && /opt/uv/bin/pip install --no-cache-dir --require-hashes ${INDEX_URL:+--index-url "$INDEX_URL"} --requirement /tmp/uv.txt
ENV PATH=/opt/venv/bin:/opt/uv/bin:$PATH VIRTUAL_ENV=/opt/venv
COPY orchestrator ./orchestrator
COPY workspace.yaml dagster.yaml ./
# The lock only constrains here: the image gets what the orchestrator needs, not the sandbox and the test tools.
# `make image-check` runs this very line in an environment of its own.
RUN --mount=type=secret,id=netrc,target=/root/.netrc --mount=type=bind,target=/context \
  uv pip install --no-cache --constraint requirements.lock --build-constraint requirements.lock \
  ${INDEX_URL:+--default-index "$INDEX_URL"} ${REQUIREMENTS:+--requirement "/context/$REQUIREMENTS"} \
  ${CUSTOM_REQUIREMENTS:+--requirement "/context/$CUSTOM_REQUIREMENTS"} --editable ".${EXTRAS:+[$EXTRAS]}"
# What nobody runs here goes: tests of other packages, sources of what is compiled, maps from web pages to theirs, symbols
# for debuggers (but where auditwheel has patched a library, which `strip` would break: *.libs), Arrow's network protocol,
# and copies of its library under names for linkers.
# The rest is compiled, because the user below may not write what Python compiles, and each run would compile it again;
# but for what the orchestrator does not import by itself.
RUN for package in joblib matplotlib numpy pandas pyarrow scipy skops sklearn tornado; do \
    find /opt/venv/lib -path "*/site-packages/$package/*" -type d \( -name test -o -name tests \) -prune -exec rm -r {} +; \
  done \
  && find /opt/venv/lib/*/site-packages/dagster_webserver /opt/venv/lib/*/site-packages/mlflow -name '*.map' -delete \
  && find /opt/venv/lib \( -name '*.pyx' -o -name '*.pxd' \) -delete \
  && rm -r /opt/venv/lib/*/site-packages/pyarrow/include \
  && find /opt/venv/lib/*/site-packages/pyarrow -type f \( -name '*flight*' -o -name 'libarrow_python*.so' \
    -o -name 'libarrow_python*.so.*.*.*' \) -delete \
  && find /opt/venv/lib -name '*.so*' -type f ! -path '*.libs/*' -exec strip --strip-unneeded {} + \
  && python -m compileall -q -x '/(databricks|fontTools|gunicorn|huey|joblib|mlflow|mpl_toolkits|narwhals|pandas|pyarrow|pygments/lexers|scipy|sklearn|skops)/' \
    /opt/venv/lib orchestrator

FROM ${BASE_IMAGE}
ARG EXTRAS=""
# git: what Jenkins says is compared with the repository; tini: signals reach the children, and zombies are reaped;
# PostgreSQL's programs are those of `orchestrator backup`, which need a server that is no newer than they are.
# Left out: what is for readers, Git's servers and mailers, and the library of Perl that those want; Debian's perl-base stays.
# The base's own packages may be older than their last security fix. Debian keeps one version of each: none is named.
# hadolint ignore=DL3008
RUN case ",$EXTRAS," in *,postgres,*) set -- postgresql-client ;; esac \
  && apt-get update && apt-get upgrade -y --no-install-recommends \
  && printf 'path-exclude=%s\n' '/usr/share/doc/*' '/usr/share/locale/*' '/usr/share/man/*' '/usr/share/gitweb/*' \
    '/usr/lib/git-core/git-http-backend' '/usr/lib/git-core/git-http-push' '/usr/lib/git-core/git-imap-send' \
    '/usr/lib/git-core/git-shell' '/usr/lib/git-core/scalar' '/usr/bin/git-shell' '/usr/bin/scalar' \
    '/usr/lib/*/libperl.so*' '/usr/lib/*/perl/5*' '/usr/share/perl/5*' >/etc/dpkg/dpkg.cfg.d/orchestrator \
  && apt-get install -y --no-install-recommends ca-certificates git tini "$@" \
  && apt-get clean && rm -rf /var/lib/apt/lists/* /etc/dpkg/dpkg.cfg.d/orchestrator
ENV PATH=/opt/venv/bin:$PATH VIRTUAL_ENV=/opt/venv PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
  HOME=/home/orchestrator DAGSTER_HOME=/var/lib/orchestrator MPLCONFIGDIR=/tmp/matplotlib PORT=7860
# By number, as Kubernetes and Hugging Face want it; a base may have a name for it.
RUN { getent passwd 1000 >/dev/null || useradd --uid 1000 --no-create-home --home-dir "$HOME" orchestrator; } \
  && install -d -o 1000 -g 1000 -m 0700 "$HOME" "$DAGSTER_HOME"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/orchestrator /opt/orchestrator
COPY --chmod=0755 deploy/container/entrypoint.sh /usr/local/bin/orchestrator-container
WORKDIR /opt/orchestrator
USER 1000:1000
# Runs, schedules and logs live here. All else may be read-only, but for /tmp.
VOLUME /var/lib/orchestrator
EXPOSE 7860
HEALTHCHECK --interval=15s --timeout=10s --start-period=2m --retries=4 \
  CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/health/ready', timeout=8)"]
ENTRYPOINT ["tini", "-g", "--", "orchestrator-container"]
