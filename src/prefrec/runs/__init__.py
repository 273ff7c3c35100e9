"""The folder of a run: its stages and what it holds."""
