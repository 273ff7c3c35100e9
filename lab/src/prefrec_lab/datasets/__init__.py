"""Readers of published research data sets, as data sources."""
