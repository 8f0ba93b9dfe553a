"""The report of a field: one self-contained HTML page that a person looks at."""

from survey.report.page import write_report
from survey.report.sources import field_truth
from survey.report.truth import compare_field, compare_with_truth

__all__ = ["compare_field", "compare_with_truth", "field_truth", "write_report"]
