"""The group-relative optimizer: pure functions on `(B, T)`, composed into one loss."""

from mmrl.objective.objective import Loss, Objective, ObjectiveConfig, compute, signal

__all__ = ["Loss", "Objective", "ObjectiveConfig", "compute", "signal"]
