"""The laboratory beside prefrec: benchmarks and studies."""
