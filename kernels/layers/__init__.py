"""Attention layers on the functions, and their way into other people's models."""
