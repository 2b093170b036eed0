"""FAVOR attention in transformers' models; transformers is imported when it is first needed."""
