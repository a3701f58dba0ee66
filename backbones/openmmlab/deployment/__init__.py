"""Choose how a trained model runs where it is used.

`timing` times models in processes of their own, `comparing` checks the files of a model against it
and sets their speed, memory and scores side by side.
"""
