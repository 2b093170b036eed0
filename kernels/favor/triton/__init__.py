"""FAVOR+ attention as Triton kernels; imported when they are first launched."""
