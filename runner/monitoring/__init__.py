"""What can be seen of a runner from outside: health, metrics, and a page."""
