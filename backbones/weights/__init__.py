"""ConvNeXt weights: reading them safely, their layouts, fitting them to a network, the zoo."""
