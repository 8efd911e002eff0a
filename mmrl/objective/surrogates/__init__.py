"""Likelihoods for models without one: masked diffusion, soft tokens, one-token rollouts."""
