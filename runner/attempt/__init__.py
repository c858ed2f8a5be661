"""The process of one attempt at an experiment, from its order to its verdict."""
