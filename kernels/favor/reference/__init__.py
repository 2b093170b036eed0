"""FAVOR+ attention in plain torch, in blocks."""
