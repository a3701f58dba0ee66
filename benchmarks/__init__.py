"""Measure speed beside other libraries, precision, and survival of kills."""
