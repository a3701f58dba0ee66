"""Models as files for other runtimes: ONNX and torch.export, held against the model itself.

`graphs`, `detector` and `segmentor` write a model as a function of an image tensor, `files` writes
that function to a file and runs it, `agreement` compares what the file says with what the model
says on images of the data set, and `exporting` puts them together.
"""
