"""Other people's recommenders, as kinds of rankers for prefrec's recipes and as verbs of its command."""
