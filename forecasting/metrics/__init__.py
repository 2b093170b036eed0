"""Losses and errors of forecasts."""
