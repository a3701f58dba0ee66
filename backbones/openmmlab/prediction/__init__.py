"""A model's answers on any image or video, as files, pictures and a page."""
