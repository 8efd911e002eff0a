"""Tiny base checkpoints: real model classes, built small and trained by our own scripts."""
