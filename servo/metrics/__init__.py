"""Metrics: what is measured, and the ways to export it."""
