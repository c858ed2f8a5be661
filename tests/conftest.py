"""Real servers, each started when the first test asks for it."""

import logging

pytest_plugins = ["tests.servers.ceph", "tests.servers.rabbitmq"]

# It reports every refused connection many times over, and tests refuse many.
logging.getLogger("pika").setLevel(logging.CRITICAL)
