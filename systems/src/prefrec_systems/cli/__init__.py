"""Verbs that the compared systems add to the command `prefrec`."""
