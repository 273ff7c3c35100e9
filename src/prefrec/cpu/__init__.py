"""Speed and repeatability on CPUs: oneDNN kernels, and gradients that do not depend on the number of threads."""
