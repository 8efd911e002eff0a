"""Stage 10: `(evaluation, batch) -> penalty (B, T) or scalar`, to be minimised. One family per file."""
