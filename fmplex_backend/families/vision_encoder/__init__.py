"""Vision encoders: DINOv2, ViT, Swin, ConvNeXt and their like, and the vision towers of CLIP and SigLIP."""
