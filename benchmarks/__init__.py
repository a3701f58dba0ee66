"""Programs that measure: speed beside other libraries, precision, survival of kills."""
