"""Difference imaging and event search for image time series."""
