# make image, or: make zipapp && docker build -t studio-runner .
FROM python:3.12-slim-bookworm

# tini reaps what killed experiments leave behind; git is for requirements from repositories.
RUN apt-get update \
 && apt-get install -y --no-install-recommends git tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --home-dir /runner --uid 1000 runner

COPY studio-runner.pyz /usr/local/bin/studio-runner.pyz

USER runner
WORKDIR /runner
# Work directories and built environments: mount a volume here to keep environments.
ENV WORKING_DIR=/runner/work
RUN mkdir /runner/work
VOLUME /runner/work

# Running experiments get --grace-period to finish: give `docker stop -t` a little more.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "python3", "/usr/local/bin/studio-runner.pyz"]
