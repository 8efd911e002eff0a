"""The group-relative optimizer: pure functions on `(B, T)`, composed into one loss."""

from mmrl.objective.computing import Explanation, compute, explain
from mmrl.objective.config import ObjectiveConfig
from mmrl.objective.mixed import MixedObjective
from mmrl.objective.objective import Loss, Objective, signal

__all__ = ["Explanation", "Loss", "MixedObjective", "Objective", "ObjectiveConfig", "compute", "explain", "signal"]
