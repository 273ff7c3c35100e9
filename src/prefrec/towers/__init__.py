"""Titles as vectors: the encoder and the store of title vectors, and the title tower that learns from them."""
