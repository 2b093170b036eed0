"""Series decomposition as Triton kernels; imported when they are first launched."""
