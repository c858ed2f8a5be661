#!/bin/bash
# Remove what create.sh made, with all results: delete.sh NAME.
set -eu -o pipefail
name=$1
account=$(aws sts get-caller-identity --query Account --output text)

for queue in "sqs_$name" "dead_sqs_$name"; do
  aws sqs delete-queue --queue-url "$(aws sqs get-queue-url --queue-name "$queue" --query QueueUrl --output text)"
done
aws s3 rb --force "s3://$name-$account" >/dev/null
for role in "$name-runner" "$name-keda"; do
  aws iam delete-role-policy --role-name "$role" --policy-name queue
  aws iam delete-role --role-name "$role"
done
user=$name-experimenter
for key in $(aws iam list-access-keys --user-name "$user" --query 'AccessKeyMetadata[].AccessKeyId' --output text); do
  aws iam delete-access-key --user-name "$user" --access-key-id "$key"
done
aws iam delete-user-policy --user-name "$user" --policy-name experiments
aws iam delete-user --user-name "$user"
