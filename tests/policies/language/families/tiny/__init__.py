"""Tiny models of many families, `RECIPES[name]() -> (model, processor)`: real classes built from a configuration."""

from tests.policies.language.families.tiny import grids, mixed, newest, others, tiles
from tests.policies.language.families.tiny.parts import RECIPES, picture

__all__ = ["RECIPES", "grids", "mixed", "newest", "others", "picture", "tiles"]
