"""A run's folder as one HTML page: what was run, what was found, how it was trained, and what changed."""

from prefrec.report.render import REPORT, write_report

__all__ = ["REPORT", "write_report"]
