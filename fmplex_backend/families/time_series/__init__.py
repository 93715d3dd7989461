"""Time series: PatchTST, PatchTSMixer, TimesFM and Tiny Time Mixer over series of any length with missing values."""
