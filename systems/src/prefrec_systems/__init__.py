"""Published recommenders, as kinds of rankers for recipes and as verbs of the command."""
