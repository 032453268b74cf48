"""The report of sweeps: one HTML file that needs no network, made from the records.

`write.write_report` is what the command calls. A module for each section finds out what it says; where
it stands is in page.html.jinja, how it looks in report.css, and report.js sorts and filters the table of all
rows. What comes from records is text, and jinja2 escapes it.
"""
