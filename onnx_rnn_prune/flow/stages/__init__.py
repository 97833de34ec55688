"""What may be done to a model once its units are cut: lower rank, zeros, fewer bits."""
