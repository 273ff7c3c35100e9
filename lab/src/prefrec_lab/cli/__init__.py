"""Research tools: measure steps, vary recipes, search their fields, look at this machine."""
