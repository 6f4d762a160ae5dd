"""Reports: what a model costs, what this machine can do and what a run did; on a terminal, as JSON, as an HTML file.

Owns: the facts of `profile` and of `score --report`, their JSON schema, their tables and charts, and the trace that
Perfetto opens. Must not know: how anything is computed. Facts are plain dictionaries in the form of
`report.schema.json`; `sections.py` turns them into tables and charts once, for the terminal and for the page.
"""
