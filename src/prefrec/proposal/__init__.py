"""What `prefrec init` and `prefrec.fit` propose for given files: columns, split, candidates and a preset."""
