"""oneDNN kernels for CPUs, chosen when a model is loaded."""
