"""Whole-sequence objectives, second half: `(scores (B,), batch) -> scalar`, to be maximised."""
