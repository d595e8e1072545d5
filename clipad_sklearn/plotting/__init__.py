"""Displays, in the style of scikit-learn. They need matplotlib."""

from ._anomaly_map import AnomalyMapDisplay
from ._prompt import PromptDisplay
from ._score import ScoreDisplay
from ._search import SearchDisplay

__all__ = ["AnomalyMapDisplay", "PromptDisplay", "ScoreDisplay", "SearchDisplay"]
