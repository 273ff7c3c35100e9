"""Readers of published research data sets, as sources of prefrec."""
