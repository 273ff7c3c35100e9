"""The proposals of `prefrec init` and `prefrec.fit` for given files: columns, split, candidates and a preset."""
