"""What results say: one HTML file, one JSON file, and the page `docs/performance.md`, of the same sections.

`document.py` reads nothing but results files (bench/results.py) and a table of prices, and makes sections of
`blocks.py`; the files named after subjects (`dense.py`, `serving.py`, `others.py`, `prices.py`) each make
some. `charts.py` draws, `html.py` and `markdown.py` write. Nothing is measured here, so a report can be made
anywhere, at any time.
"""
