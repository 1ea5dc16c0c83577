"""Activations of a whole data set by site and position, in memory or on disk."""
