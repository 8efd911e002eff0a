"""Stage 8: `(log_ratio, evaluation, batch) -> objective (B, T)`, to be maximised. One family per file."""
