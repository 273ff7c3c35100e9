"""The report: a run as one HTML page with settings, results, training curves and examples."""

from prefrec.report.render import REPORT, write_report

__all__ = ["REPORT", "write_report"]
