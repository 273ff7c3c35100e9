"""oneDNN kernels for CPUs, selected when a model is loaded."""
