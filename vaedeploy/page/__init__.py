"""Measurements and images as one HTML page.

    >>> path = write_page(document, folder)

May import ``quality``, ``images`` and the packages below them. It does not know where the numbers in a ``Document``
come from.
"""

from __future__ import annotations

from vaedeploy.page.document import Cell, Column, Document, Strip, Table
from vaedeploy.page.write import check_folder, write_page

__all__ = ["Cell", "Column", "Document", "Strip", "Table", "check_folder", "write_page"]
