"""What calibration shows: the readers of units, and moments of what they read."""
