"""Serve a run over HTTP, with a web page."""
