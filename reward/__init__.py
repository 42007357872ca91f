"""Reward model: preferences -> a scalar score, with a report card."""
