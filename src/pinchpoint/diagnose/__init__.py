"""Judgement of one run: is the measurement sound, and what gives way first.

Sees a run only through `series.RunView`; knows nothing of how it was made. `check` judges the measurement, `features`
computes what every rule shares, `rules/` holds one cause per file, `rank` turns their evidence into probabilities.
"""
