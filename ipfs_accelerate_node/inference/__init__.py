"""Devices, models and the processes that run them. ``Registry`` is the door; torch is imported by workers only."""
