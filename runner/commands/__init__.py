"""What the program can be told to do: one module for each of its sub-commands, and what they share."""
