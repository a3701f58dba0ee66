"""What plugs the backbones into OpenMMLab."""
