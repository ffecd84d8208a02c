"""Hypothesis over pure decisions, stateful models, and simulated clusters on a virtual clock."""
