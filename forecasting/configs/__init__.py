"""Configurations that ship with the package; `favorcast.forecasting.config_files` finds them."""
