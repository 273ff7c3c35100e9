"""Serve a run over HTTP with a web page, and export rankers for other servers."""
