"""Stage 5: baselines and normalisation, `(batch) -> (B,) or (B, T)`. One family of methods per file."""
