"""Time series of any length with missing values: PatchTST, PatchTSMixer, TimesFM, Tiny Time Mixer and Chronos-Bolt."""
