"""The process that takes messages, shares the machine among them, and settles them."""
