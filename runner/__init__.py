"""A StudioML work runner: takes experiment messages from queues and runs them."""

__version__ = "0.1.0"
