"""The group-relative optimizer: pure functions on `(B, T)`, composed into one loss."""

from mmrl.objective.computing import Explanation, compute, explain
from mmrl.objective.objective import Loss, Objective, ObjectiveConfig, signal

__all__ = ["Explanation", "Loss", "Objective", "ObjectiveConfig", "compute", "explain", "signal"]
