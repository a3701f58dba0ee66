"""Export models to ONNX and torch.export, compared with the model itself.

`graphs` turns a model into a function of an image tensor with the help of its task, `files` writes
that function to a file and runs it, `agreement` compares the file's outputs with the model's on
images of the data set, and `exporting` puts them together. `publishing` makes the folder in which a
trained model is handed on.
"""
