"""Declared trials, the table of README and other experiments: each writes its file of `lab/results`.

`python -m prefrec_lab.trials.NAME --help` says what a module reads. `python scripts/experiments_page.py` writes the
pages afterwards.
"""
