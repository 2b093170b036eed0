"""FAVOR+ attention: functions, their operators, and two implementations."""
