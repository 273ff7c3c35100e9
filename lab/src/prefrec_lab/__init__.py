"""The laboratory beside prefrec: benchmarks, studies, published data sets, and a check of the machine."""
