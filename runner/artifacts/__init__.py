"""Directories and the stored objects they come from and go to: packing, unpacking, what changed, what is kept."""
