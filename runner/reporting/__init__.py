"""What is told of experiments while they run: reports on response queues, notices in Slack."""
