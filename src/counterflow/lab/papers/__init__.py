"""The papers, one folder each: ``published.toml``, ``experiment.py``, ``figures.py``."""
