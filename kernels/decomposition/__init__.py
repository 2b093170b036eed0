"""Moving average and series decomposition: functions, their operators, and two implementations."""
