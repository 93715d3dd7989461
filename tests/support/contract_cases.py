"""Every family that the contract test takes."""

from __future__ import annotations

from audio_encoder_case import AudioEncoderCase
from family_cases import FamilyCase
from language_model_case import LanguageModelCase
from series_case import SeriesCase
from text_encoder_case import TextEncoderCase
from vision_encoder_case import VisionEncoderCase

CASES: tuple[FamilyCase, ...] = (
    TextEncoderCase(),
    VisionEncoderCase(),
    SeriesCase(),
    AudioEncoderCase(),
    LanguageModelCase(),
)
