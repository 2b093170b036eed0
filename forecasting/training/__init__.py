"""Training of a forecaster: steps, schedules, scheduled sampling, callbacks."""
