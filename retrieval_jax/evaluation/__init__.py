"""Runs, measures, baselines, reports and approximation diagnostics."""
