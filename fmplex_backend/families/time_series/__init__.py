"""Time series of any length with missing values.

Backbones are PatchTST, PatchTSMixer, TimesFM, Tiny Time Mixer, Chronos-Bolt and MOMENT.
"""
