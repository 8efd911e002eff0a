"""Shaping: rewards that depend on the whole group, on lengths or on the step. `(batch) -> reward (B,)`."""
