"""Data files that ship with favorcast: see favorcast.forecasting.data.flows for how they were made."""
