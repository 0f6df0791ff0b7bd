"""Measuring a run and explaining it: what is kept, reports, plots, predictions."""
