"""Objectives: what a model is trained for, as sums with counts."""

from cellmill.training.objectives.classification import ClassificationObjective
from cellmill.training.objectives.generative import GenerativeConfig, GenerativeObjective
from cellmill.training.objectives.result import Objective, ObjectiveResult

__all__ = ["ClassificationObjective", "GenerativeConfig", "GenerativeObjective", "Objective", "ObjectiveResult"]
