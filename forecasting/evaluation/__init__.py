"""Yardsticks, and what a run writes about its forecasts."""
