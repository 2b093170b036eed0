"""Configurations that ship with the package; `favorcast.forecasting.cli.config_files` finds them."""
