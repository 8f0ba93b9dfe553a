"""Numerical methods: arrays in, arrays out. Imports nothing else of `survey`."""
