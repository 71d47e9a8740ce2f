"""The report of a conversion, for programs (`report.json`) and for people (`report.html`).

`schema.py` is what it says; `write_report` (`writing.py`) puts both forms into a bundle, and `sample_scores`
picks what is plotted. `page.py` renders the page from `template.html` with the plots of `plots.py`.
"""

from converters.report.schema import (
    ERROR_EDGES,
    REPORT_SCHEMA_VERSION,
    ConversionReport,
    Removed,
    ScoreSample,
    TableUse,
    UnsupportedOp,
)
from converters.report.writing import (
    REPORT_HTML,
    REPORT_JSON,
    check_report_path,
    op_counts,
    read_report,
    sample_scores,
    write_report,
    write_report_file,
)

__all__ = [
    "ERROR_EDGES",
    "REPORT_HTML",
    "REPORT_JSON",
    "REPORT_SCHEMA_VERSION",
    "ConversionReport",
    "Removed",
    "ScoreSample",
    "TableUse",
    "UnsupportedOp",
    "check_report_path",
    "op_counts",
    "read_report",
    "sample_scores",
    "write_report",
    "write_report_file",
]
