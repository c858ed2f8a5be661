"""Figures of the whole runner, on real servers."""
