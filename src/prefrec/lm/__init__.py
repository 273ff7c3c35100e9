"""The language-model side: load a model, lay out choice sets, score them."""
