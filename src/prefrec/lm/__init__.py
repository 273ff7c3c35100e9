"""Language models: loading, layout of choice sets, scoring."""
