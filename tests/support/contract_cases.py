"""Every family that the contract test takes."""

from __future__ import annotations

from family_cases import FamilyCase
from text_encoder_case import TextEncoderCase

CASES: tuple[FamilyCase, ...] = (TextEncoderCase(),)
