"""What CPUs need: oneDNN kernels, selected when a model is loaded, and gradients that do not depend on threads."""
