"""The report of a field: one self-contained HTML page that a person looks at."""

from survey.report.page import write_report
from survey.report.truth import compare_with_truth, field_truth

__all__ = ["compare_with_truth", "field_truth", "write_report"]
