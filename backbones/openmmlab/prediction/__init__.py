"""Predict any image or video, and write the results as files, drawings and a web page."""
