"""What makes weights smaller beside pruning: precision, rank, sparsity."""
