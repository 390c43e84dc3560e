"""The report as one HTML page (``page.py``), and as a short fragment for notebooks (``notebook.py``)."""
