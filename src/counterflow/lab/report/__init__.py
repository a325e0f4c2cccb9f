"""The report: what a paper hands over, one HTML page, and the committed summary in Markdown."""

from __future__ import annotations

from counterflow.lab.report.claims import claims_document
from counterflow.lab.report.exhibit import Cell, Exhibit, Figure, Section, TableExhibit
from counterflow.lab.report.gather import assemble, read_sections, select
from counterflow.lab.report.markdown import reproduction_markdown
from counterflow.lab.report.page import write_report

__all__ = [
    "Cell",
    "Exhibit",
    "Figure",
    "Section",
    "TableExhibit",
    "assemble",
    "claims_document",
    "read_sections",
    "reproduction_markdown",
    "select",
    "write_report",
]
