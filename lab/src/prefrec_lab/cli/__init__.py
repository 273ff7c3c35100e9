"""Research tools: measure steps, vary recipes, search their fields, check this machine."""
