"""What was measured and what it looks like, as one HTML page: ``write_report(document, folder)``."""

from vaedeploy.report.document import Candidate, Cell, Column, Document, Picture, Strip, Table
from vaedeploy.report.looks import Looks
from vaedeploy.report.verification import verification_document, write_verification
from vaedeploy.report.write import check_folder, write_report

__all__ = [
    "Candidate",
    "Cell",
    "Column",
    "Document",
    "Looks",
    "Picture",
    "Strip",
    "Table",
    "check_folder",
    "verification_document",
    "write_report",
    "write_verification",
]
