"""Time series: PatchTST, PatchTSMixer and Tiny Time Mixer over series of any length with missing values."""
