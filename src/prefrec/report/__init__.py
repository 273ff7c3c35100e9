"""A run as one HTML page: settings, results, training curves and examples."""

from prefrec.report.render import REPORT, write_report

__all__ = ["REPORT", "write_report"]
