# The runner in a container: `make image`, or `make zipapp && docker build -t studio-runner .`
# With GPUs: `docker build --target gpu -t studio-runner:gpu .`
#
# BASE is any Debian or Ubuntu image. Its Python is the one that experiments get, so take what their messages ask for:
# debian:bookworm-slim has 3.11, ubuntu:24.04 has 3.12.
ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS cpu
# More packages of the distribution for experiments, say "build-essential libgl1".
ARG PACKAGES=""

# tini reaps what killed experiments leave behind; git is for requirements from repositories. Versions are those of the
# base's release: a version named here would be gone with the next security update.
# hadolint ignore=DL3008,SC2086
RUN set -eu; \
    python3 -c 'import ensurepip, venv' 2>/dev/null || PACKAGES="$PACKAGES python3 python3-venv"; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates git tini $PACKAGES; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    useradd --uid 10001 --user-group --home-dir /runner/work --no-create-home --shell /usr/sbin/nologin runner; \
    install -d /runner; \
    install -d -o runner -g runner /runner/work

# Unpacked and compiled here, as root: starts write nothing, and experiments, whose user is the runner's, cannot change it.
ENV STUDIO_RUNNER_ROOT=/usr/local/lib/studio-runner
COPY studio-runner.pyz /usr/local/bin/studio-runner
RUN set -eu; \
    chmod 0755 /usr/local/bin/studio-runner; \
    studio-runner --version; \
    python3 -m compileall -q "$STUDIO_RUNNER_ROOT"

# The root file system may be read-only. Only this is written to (environments, work directories, pip's cache: worth
# keeping, but need not be), and /tmp by experiments that insist on it.
VOLUME /runner/work
# Certificates and keys are looked for in /runner/certs.
WORKDIR /runner
ENV HOME=/runner/work WORKING_DIR=/runner/work
# A number, since Kubernetes' runAsNonRoot knows no names.
USER 10001:10001

# Running experiments get GRACE_PERIOD to finish, and then some time to store their results: `docker stop -t` has to be longer.
STOPSIGNAL SIGTERM
EXPOSE 9090
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python3", "-c", "\
import http.client, os, sys\n\
port = os.environ.get('PROM_ADDRESS', ':9090').rpartition(':')[2]\n\
if not port: sys.exit()\n\
there = http.client.HTTPConnection('127.0.0.1', int(port), timeout=8)\n\
there.request('GET', '/healthz')\n\
sys.exit(there.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "studio-runner"]

# NVIDIA's container toolkit mounts the driver for these; CUDA's libraries come with the wheels of frameworks.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last one is what is built when none is named.
FROM cpu
