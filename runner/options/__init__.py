"""Every option equally a flag and an environment variable, and declared once."""
