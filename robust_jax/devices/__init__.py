"""Devices: which there are, and functions mapped over them."""
