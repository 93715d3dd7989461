"""The architectures of time-series models that can be backbones, by their model type. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from fmplex_backend.families.model_files import width_in
from fmplex_backend.families.time_series import chronos_bolt, moment

Each = TypeVar("Each")
PATCHES = "patches"  # in the place of a pooling: the decoder reads the vectors of all patches, and the scale


class Ran(NamedTuple):
    """What a model makes of n rows of c channels, as tensors."""

    tokens: Any  # [n, c, t, d]
    location: Any  # [n, c]: the level that the model takes away from each channel
    scale: Any  # [n, c]: and what it divides it by


def _sizes(config: Any) -> tuple[int, int, int]:
    patch = int(config.patch_length)
    return int(config.context_length), patch, int(getattr(config, "patch_stride", patch))


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs from one to the other.

    Args:
        run: a model, values [n, context, c] and which of them were observed -> its answer.
        separates: whether a config has channels that do not see each other, so that any number may come.
        forecaster: the class with the model's own forecast head; `backbone` is its attribute for the rest, or `parts`
            are those of the head, where there is no such attribute.
        tied: tensors of the head that files need not have, by name, and those of the backbone that they are.
        embeddings: the attribute for a table of vectors, which PEFT asks for, where transformers does not find it.
        sizes: of a config, the steps of the context, of a patch, and from one patch to the next.
        levels: of a config, those of the head's quantiles.
        head: that model without the rest, and tokens [n, c, t, d] -> [n, steps, channels], scaled; with quantiles
            [n, steps, channels, 1 + levels]. It may be several parameters of a distribution.
        steps: of a config, those that the head forecasts.
        package: what has the class, where that is not transformers, whose AutoModel then does not know the model
            without its head; `install`: how to have it; `config`: the class of the model's config, where AutoConfig
            does not know that either.
        refused: a field of a backbone's config.json with which it is not read right, and why.
        forecasts: whether the class has a forecast head; without one it is the backbone alone.
        whole_patches: whether a patch that lacks a value is one that holds nothing.
        takes_shorter: whether a series that is shorter than the context may come without the patches before it: those
            of missing values alone change nothing of the others, and their tokens are 0.
        batch_norms: classes of modules that put [n, t, d] through a BatchNorm1d, their `batchnorm`.
    """

    run: Callable[[Any, Any, Any], Ran]
    separates: Callable[[Any], bool]
    forecaster: str
    backbone: str = "model"
    head: Callable[[Any, Any], Any] = lambda module, tokens: module.head(tokens)
    steps: Callable[[Any], int] = lambda config: int(config.prediction_length)
    parts: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    embeddings: str = ""
    sizes: Callable[[Any], tuple[int, int, int]] = _sizes
    levels: Callable[[Any], Sequence[float]] = lambda config: [float(each) for each in getattr(config, "quantiles", ())]
    package: str = ""
    install: str = ""
    config: str = ""
    refused: Callable[[Mapping[str, Any]], tuple[str, str] | None] = lambda config: None
    whole_patches: bool = False
    takes_shorter: bool = False
    forecasts: bool = True
    batch_norms: tuple[str, ...] = ()

    def of_head(self, name: str) -> bool:
        """Whether a tensor or a module of the forecaster is the head's, by its path."""
        part = name.partition(".")[0]
        return part in self.parts if self.parts else part != self.backbone

    def head_of(self, tensors: Mapping[str, Each]) -> dict[str, Each]:
        """Those of a whole model's tensors that are the head's."""
        return {name: each for name, each in tensors.items() if self.of_head(name)}

    def forecasts_any(self, config: Any) -> bool:
        """Whether a config's head forecasts each channel by itself, all by the same weights."""
        shared = getattr(config, "share_projection", True) and not getattr(config, "prediction_channel_indices", None)
        mixed = getattr(config, "use_decoder", False) and config.decoder_mode != "common_channel"
        return bool(self.separates(config) and shared and not mixed)


def _any_set(**reasons: str) -> Callable[[Mapping[str, Any]], tuple[str, str] | None]:
    """`Architecture.refused` of these fields, where one is set."""
    return lambda config: next((each for each in reasons.items() if config.get(each[0])), None)


def _masked_by(name: str) -> Callable[[Any, Any, Any], Ran]:
    """Of a model that takes a mask under this name."""

    def run(model: Any, values: Any, observed: Any) -> Ran:
        found = model(past_values=values, **{name: observed.to(values.dtype)})
        return Ran(found.last_hidden_state, found.loc[:, 0], found.scale[:, 0])

    return run


def _run_timesfm(model: Any, values: Any, observed: Any) -> Ran:
    """Of one channel; the frequency is 0 ("high"), as it is by default."""
    frequency = values.new_zeros((len(values), 1)).long()
    padding = (~observed[..., 0]).to(values.dtype)
    found = model(past_values=values[..., 0], past_values_padding=padding, freq=frequency)
    return Ran(found.last_hidden_state[:, None], found.loc[:, None], found.scale[:, None])


def _run_chronos_bolt(model: Any, values: Any, observed: Any) -> Ran:
    return Ran(*chronos_bolt.states(model, values, observed))


def _run_moment(model: Any, values: Any, observed: Any) -> Ran:
    return Ran(*moment.states(model, values, observed))


def _timesfm_head(module: Any, tokens: Any) -> Any:
    """What the last patch says of the steps after it."""
    config = module.config
    found = module.horizon_ff_layer(tokens[:, :, -1])
    return found.unflatten(-1, (config.horizon_length, -1)).transpose(1, 2)


def _tiny_time_mixer_head(module: Any, tokens: Any) -> Any:
    if module.use_decoder:
        tokens, _ = module.decoder(hidden_state=tokens, patch_input=None)
    return module.head(tokens, past_values=None)


ARCHITECTURES = {
    "patchtst": Architecture(
        _masked_by("past_observed_mask"),
        lambda config: bool(config.share_embedding and not config.channel_attention),
        "PatchTSTForPrediction",
        batch_norms=("PatchTSTBatchNorm",),
    ),
    "patchtsmixer": Architecture(
        _masked_by("observed_mask"),
        lambda config: config.mode == "common_channel",
        "PatchTSMixerForPrediction",
        batch_norms=("PatchTSMixerBatchNorm",),
    ),
    "timesfm": Architecture(
        _run_timesfm,
        lambda config: True,
        "TimesFmModelForPrediction",
        "decoder",
        _timesfm_head,
        lambda config: int(config.horizon_length),
    ),
    "tinytimemixer": Architecture(
        _masked_by("past_observed_mask"),
        lambda config: config.mode == "common_channel",
        "TinyTimeMixerForPrediction",
        "backbone",
        _tiny_time_mixer_head,
        lambda config: int(config.prediction_filter_length or config.prediction_length),
        batch_norms=("TinyTimeMixerBatchNorm",),
        package="tsfm_public.models.tinytimemixer",
        install="pip install --no-deps granite-tsfm==0.3.11 && pip install 'fmplex[tiny-time-mixer]'",
        refused=_any_set(
            resolution_prefix_tuning="it wants the frequency of each series",
            categorical_vocab_size_list="it wants categories beside each series",
            enable_forecast_channel_mixing="it wants values of the future",
            decoder_raw_residual="its head reads the series beside the backbone's vectors",
        ),
    ),
    chronos_bolt.MODEL_TYPE: Architecture(
        _run_chronos_bolt,
        lambda config: True,
        chronos_bolt.CLASS,
        head=chronos_bolt.quantiles,
        steps=chronos_bolt.steps,
        parts=chronos_bolt.HEAD,
        tied=chronos_bolt.TIED,
        embeddings="shared",
        sizes=chronos_bolt.sizes,
        levels=chronos_bolt.levels,
        package=chronos_bolt.MODULE,
        install=chronos_bolt.INSTALL,
        takes_shorter=True,
    ),
    moment.MODEL_TYPE: Architecture(
        _run_moment,
        lambda config: True,
        moment.CLASS,
        config=moment.CONFIG,
        sizes=moment.sizes,
        package=moment.MODULE,
        install=moment.INSTALL,
        refused=moment.refused,
        whole_patches=True,
        forecasts=False,
    ),
}


def kind_of(config: Mapping[str, Any]) -> str:
    """The type of a model by its config.json: Chronos-Bolt's says that it is a T5, MOMENT's none."""
    if chronos_bolt.CLASS in (config.get("architectures") or ()):
        return chronos_bolt.MODEL_TYPE
    return moment.MODEL_TYPE if moment.is_moment(config) else str(config.get("model_type"))


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """That of a config.json; None where it is of another kind."""
    return ARCHITECTURES.get(kind_of(config))


def width_of(config: Mapping[str, Any]) -> int | None:
    """The width of a model's states by its config.json; None where that does not say it."""
    return moment.width(config) if moment.is_moment(config) else width_in(config)
