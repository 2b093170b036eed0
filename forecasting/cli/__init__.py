"""The command `favorcast`."""
