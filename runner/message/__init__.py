"""The messages of experimenters, and every check on what strangers wrote (protocol section 1)."""
