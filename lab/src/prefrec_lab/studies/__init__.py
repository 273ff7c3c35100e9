"""Studies: a question, what is varied, the runs that answer it, and the page that shows the answer."""
