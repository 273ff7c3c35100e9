"""Queries about a catalogue: names of items, rules and answers, shared by Python, HTTP and the command line."""
