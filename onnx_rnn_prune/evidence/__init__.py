"""Calibration evidence: the readers of units, and the moments of their signals."""
