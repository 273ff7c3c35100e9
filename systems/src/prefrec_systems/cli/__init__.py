"""Verbs that this package adds to the command `prefrec`."""
