"""The lattice-Boltzmann solver and the flows that are shipped."""
