"""The folder of a run: its stages, and what of it can be read."""
