"""Self-contained HTML reports of runs."""

from cellmill.report.page import Figure, Section, Table, html_environment, write_page
from cellmill.report.sections import run_section

__all__ = ["Figure", "Section", "Table", "html_environment", "run_section", "write_page"]
