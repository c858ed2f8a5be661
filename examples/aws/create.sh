#!/bin/bash
# Make the queue, the bucket, and what is allowed to use them: create.sh NAME. May be run again.
#
# Needs the aws CLI with rights to create these, and AWS_DEFAULT_REGION. All that it makes is named after NAME.
set -eu -o pipefail
name=$1
account=$(aws sts get-caller-identity --query Account --output text)
bucket=$name-$account

there() { "$@" >/dev/null 2>&1; }

# Where artifacts go. Nobody but its account reads it, and uploads that were never finished go away.
there aws s3api head-bucket --bucket "$bucket" || aws s3 mb "s3://$bucket"
aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
  BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
aws s3api put-bucket-lifecycle-configuration --bucket "$bucket" --lifecycle-configuration \
  '{"Rules": [{"ID": "unfinished", "Status": "Enabled", "Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}'

# The queue, and where messages go that failed for good; no runner takes work from a queue of that name. Runners count
# attempts themselves (--max-attempts). SQS counts deliveries, also those to runners on which a message does not fit: it is to
# allow as many as it can.
dead=$(aws sqs create-queue --queue-name "dead_sqs_$name" --attributes MessageRetentionPeriod=1209600 --query QueueUrl --output text)
dead_arn=$(aws sqs get-queue-attributes --queue-url "$dead" --attribute-names QueueArn --query Attributes.QueueArn --output text)
queue=$(aws sqs create-queue --queue-name "sqs_$name" --query QueueUrl --output text)
aws sqs set-queue-attributes --queue-url "$queue" --attributes "$(
  printf '{"MessageRetentionPeriod": "1209600", "RedrivePolicy": "{\\"deadLetterTargetArn\\": \\"%s\\", \\"maxReceiveCount\\": \\"1000\\"}"}' "$dead_arn"
)"
queue_arn=$(aws sqs get-queue-attributes --queue-url "$queue" --attribute-names QueueArn --query Attributes.QueueArn --output text)

# What a runner may: take from the queue, and write to its dead letters. Artifacts it reads with the credentials of messages.
runner_policy=$(cat <<EOF
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "sqs:ListQueues", "Resource": "*"},
  {"Effect": "Allow",
   "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:SendMessage"],
   "Resource": ["$queue_arn", "$dead_arn"]}]}
EOF
)
# EKS Pod Identity hands the role to the pods of a service account: cluster.yaml says which.
trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "pods.eks.amazonaws.com"},
  "Action": ["sts:AssumeRole", "sts:TagSession"]}]}'
there aws iam get-role --role-name "$name-runner" ||
  aws iam create-role --role-name "$name-runner" --assume-role-policy-document "$trust" >/dev/null
aws iam put-role-policy --role-name "$name-runner" --policy-name queue --policy-document "$runner_policy"
# KEDA only counts messages.
there aws iam get-role --role-name "$name-keda" ||
  aws iam create-role --role-name "$name-keda" --assume-role-policy-document "$trust" >/dev/null
aws iam put-role-policy --role-name "$name-keda" --policy-name queue --policy-document \
  "{\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Allow\", \"Action\": \"sqs:GetQueueAttributes\", \"Resource\": \"$queue_arn\"}]}"

# What experimenters may: their keys travel in messages, so they open this bucket and this queue only.
experimenter_policy=$(cat <<EOF
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], "Resource": "arn:aws:s3:::$bucket/*"},
  {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": "arn:aws:s3:::$bucket"},
  {"Effect": "Allow", "Action": ["sqs:GetQueueUrl", "sqs:SendMessage"], "Resource": "$queue_arn"}]}
EOF
)
there aws iam get-user --user-name "$name-experimenter" || aws iam create-user --user-name "$name-experimenter" >/dev/null
aws iam put-user-policy --user-name "$name-experimenter" --policy-name experiments --policy-document "$experimenter_policy"

echo "bucket  $bucket"
echo "queue   $queue"
echo "roles   $name-runner, $name-keda; user $name-experimenter"
