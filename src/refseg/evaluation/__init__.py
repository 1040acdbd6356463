"""Scores of a model's answers, and what is made of them: reports, comparisons, calibration, figures."""
