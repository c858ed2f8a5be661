"""What must not be seen, and how it is kept out of everything that is."""
