"""The one exception whose text is meant for the user and not for a developer."""


class InputError(ValueError):
    """Something the user supplied is wrong: a path, a config key, a checkpoint, an image, a data set.

    Its text is one line that names the file, key or class and says what to do. The tools print it and exit with
    status 2, without a traceback; in Python it is an ordinary `ValueError`.
    """
