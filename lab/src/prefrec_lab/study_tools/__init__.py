"""What studies share: their parts, runs, measurements, tables and plots, and the folder that they write."""
