"""Real servers, each started when the first test asks for it."""

pytest_plugins = ["tests.servers.ceph", "tests.servers.rabbitmq"]
