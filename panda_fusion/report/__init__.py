"""A report on a matrix: tables and figures from its records, as a page, Markdown, CSV and LaTeX."""
