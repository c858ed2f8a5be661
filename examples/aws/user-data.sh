#!/bin/bash
# User data for Debian or Ubuntu: installs the runner as a service. Replace YOUR-BUCKET.
set -eu
bucket=YOUR-BUCKET

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends python3 python3-venv git ca-certificates curl awscli

# The region that this machine is in, from its metadata service.
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
region=$(curl -sf -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/placement/region)

aws --region "$region" s3 cp "s3://$bucket/studio-runner.pyz" /usr/local/bin/studio-runner.pyz
aws --region "$region" s3 cp "s3://$bucket/studio-runner.service" /etc/systemd/system/studio-runner.service
chmod 0755 /usr/local/bin/studio-runner.pyz
useradd --system --home-dir /var/lib/studio-runner --no-create-home --shell /usr/sbin/nologin studio-runner || true

install -m 0600 /dev/null /etc/studio-runner.env
printf 'SQS_REGION=%s\nCLEAR_TEXT_MESSAGES=true\n' "$region" >/etc/studio-runner.env
systemctl daemon-reload
systemctl enable --now studio-runner
