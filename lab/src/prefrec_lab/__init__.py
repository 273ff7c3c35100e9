"""Research tools for prefrec: benchmarks, studies, published data sets, and a check of the machine."""
