"""Tools of all studies: parts, runs, measurements, tables and plots, and the folder that a study writes."""
