"""The pull plane: what a GET or HEAD answers, computed without knowing any web framework."""
