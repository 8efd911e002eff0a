"""Credit: which tokens, segments or denoising steps carry a rollout's advantage.

`credit(advantage (B, T), batch) -> (advantage (B, T), loss_mask (B, T))`. To silence an action and keep the
denominator, its advantage becomes 0; an action that leaves `loss_mask` leaves the denominator too.
"""
