"""Displays, in the style of scikit-learn. They need matplotlib."""

from ._anomaly_map_display import AnomalyMapDisplay
from ._prompt_display import PromptDisplay
from ._score_display import ScoreDisplay
from ._search_display import SearchDisplay

__all__ = ["AnomalyMapDisplay", "PromptDisplay", "ScoreDisplay", "SearchDisplay"]
