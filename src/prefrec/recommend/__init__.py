"""Questions about a catalogue: items by their names, rules, and answers; Python, HTTP and command line share them."""
