"""A run behind HTTP: ranking and explanation for many clients, and a page; exports for other servers."""
