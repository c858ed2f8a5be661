#!/bin/bash
# User data for Debian or Ubuntu: installs the runner as a service. Replace YOUR-BUCKET.
set -eu
bucket=YOUR-BUCKET

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends python3 python3-venv git ca-certificates awscli

aws s3 cp "s3://$bucket/studio-runner.pyz" /usr/local/bin/studio-runner.pyz
aws s3 cp "s3://$bucket/studio-runner.service" /etc/systemd/system/studio-runner.service
useradd --system --create-home --home-dir /var/lib/studio-runner studio-runner || true

umask 077
url=$(aws ssm get-parameter --with-decryption --name /studio-runner/amqp-url --query Parameter.Value --output text)
host=$(printf '%s' "$url" | sed -E 's#^.*@([^:/]+).*$#\1#')
printf 'AMQP_URL=%s\nAMQP_MGT_URL=https://%s\n' "$url" "$host" >/etc/studio-runner.env

systemctl daemon-reload
systemctl enable --now studio-runner
