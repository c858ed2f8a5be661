"""What this machine has, and who has got how much of it."""
