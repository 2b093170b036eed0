"""Data files that ship with favorcast: see favorcast.forecasting.flows.records for how they were made."""
