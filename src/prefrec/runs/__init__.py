"""The folder of a run: stages, locks and contents."""
