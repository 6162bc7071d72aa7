"""Any model of timm as tower, with a connector to the width of the language model."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saga_ray.encoder.base import Tower, check_multiple
from saga_ray.types import VisualTokens

_HEADS = ("head", "fc", "classifier", "fc_norm", "attn_pool", "head_dist")
"""Parts of a checkpoint behind the features; a tower has none."""


class Connector(nn.Sequential):
    """LayerNorm and a perceptron of two layers, from a tower's width to the language model's."""

    def __init__(self, width_in: int, width: int, *, silent: bool) -> None:
        super().__init__(nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width))
        if silent:
            nn.init.zeros_(self[3].weight)
            nn.init.zeros_(self[3].bias)


class TimmTower(Tower):
    """Patch tokens, or the last feature map, of a timm model; each level of tokens has a connector of its own.

    Level 0 reads the last features. DeepStack levels read blocks at even distances (as Qwen3-VL's own tower does) where
    the model is one run of equal blocks, else the last features too. Their connectors begin with 0, since the language
    model adds them to its hidden states: training begins without DeepStack.

    The model runs in evaluation mode also in training: batch statistics and dropout would make a replay another network.
    """

    kind = "timm"

    def __init__(self, name: str, image_size: int, width: int, num_levels: int) -> None:
        try:
            model = _created(name, image_size)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            near = ", ".join(get_close_matches(name, timm.list_models(), n=3, cutoff=0.4))
            raise ValueError(
                f"encoder.tower: timm:{name} cannot be made for images of {image_size} pixels "
                f"({str(error).splitlines()[0]}); choose another model{f', such as {near}' if near else ''}"
            ) from None
        super().__init__(tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
        self.settings = {"name": name, "image_size": image_size, "width": width, "num_levels": num_levels}
        self.model = model.eval()
        widths = [model.num_features] * num_levels
        self.connectors = nn.ModuleList(Connector(w, width, silent=level > 0) for level, w in enumerate(widths))

    @classmethod
    def created(
        cls,
        name: str,
        image_size: int,
        width: int,
        num_levels: int,
        *,
        seed: int,
        weights: str | None,
        revision: str | None,
    ) -> TimmTower:
        """A tower whose new parameters depend on `seed` alone.

        Args:
            weights: A safetensors file; `hub` for the model's own on the hub at commit `revision`; None: random ones.

        Raises:
            ValueError: for a model or file that cannot be used.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = cls(name, image_size, width, num_levels)
        if weights is not None:
            _load(tower.model, _weights_file(tower.model, name, weights, revision))
        return tower

    @property
    def width(self) -> int:
        return self.settings["width"]

    @property
    def backbone(self) -> str:
        return f"timm-{self.settings['name']}"

    def train(self, mode: bool = True) -> TimmTower:
        super().train(mode)
        self.model.eval()
        return self

    def new_parameters(self) -> list[nn.Parameter]:
        return list(self.connectors.parameters())

    def check_size(self, size: int) -> None:
        if size != self.settings["image_size"]:
            raise ValueError(
                f"data.image_size: {size}, but this tower was made for {self.settings['image_size']}; choose that"
            )
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        if patch is not None:
            check_multiple(size, patch if isinstance(patch, int) else patch[0])

    def forward(self, images_NHWC: Tensor) -> VisualTokens:
        pixels_NCHW = self.normalised(images_NHWC.to(self.mean_C.device)).to(self.dtype)
        features, grid_hw = self.features(pixels_NCHW)
        levels = [connector(level_NTC) for connector, level_NTC in zip(self.connectors, features, strict=True)]
        return VisualTokens(torch.stack(levels, dim=1), grid_hw)

    def features(self, pixels_NCHW: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Features (N, T, C) of every level in raster order, and their grid (rows, columns)."""
        further = len(self.connectors) - 1
        blocks = getattr(self.model, "blocks", None)
        if further and blocks is not None and hasattr(self.model, "forward_intermediates"):
            places = [round((k + 1) / (further + 1) * len(blocks)) - 1 for k in range(further)]
            try:
                last, between = self.model.forward_intermediates(pixels_NCHW, indices=places, output_fmt="NCHW")
            except (AssertionError, TypeError):
                last, between = self.model.forward_features(pixels_NCHW), []
            last_NTC, grid_hw = self._raster(last, pixels_NCHW)
            if len(between) == further and all(x.shape[1:] == (last_NTC.shape[2], *grid_hw) for x in between):
                return [last_NTC, *(x.flatten(2).transpose(1, 2) for x in between)], grid_hw
            return [last_NTC] * (further + 1), grid_hw
        last_NTC, grid_hw = self._raster(self.model.forward_features(pixels_NCHW), pixels_NCHW)
        return [last_NTC] * (further + 1), grid_hw

    def _raster(self, found: Tensor, pixels_NCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if found.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                found = found.permute(0, 3, 1, 2)
            return found.flatten(2).transpose(1, 2), (found.shape[2], found.shape[3])
        found = found[:, getattr(self.model, "num_prefix_tokens", 0) :]
        grid_hw = tuple(self.model.patch_embed.dynamic_feat_size(pixels_NCHW.shape[2:]))
        assert found.ndim == 3 and found.shape[1] == grid_hw[0] * grid_hw[1], "tokens form a grid"
        return found, grid_hw


def _created(name: str, image_size: int) -> nn.Module:
    # Names with a tag, or of a hub, decide on weights; here a name is an architecture alone.
    fixed = timm.models.is_model(name) and timm.get_pretrained_cfg(name).fixed_input_size
    size: dict[str, Any] = {"img_size": image_size} if fixed else {}
    return timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **size)


def _weights_file(model: nn.Module, name: str, weights: str, revision: str | None) -> Path:
    if weights != "hub":
        path = Path(weights).expanduser()
        if path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(
                f"encoder.weights: {weights} is not a .safetensors file; name one (other formats are never read), `hub`, or "
                f"leave the key out for random weights"
            )
        return path
    repo = model.pretrained_cfg.get("hf_hub_id")
    if not repo:
        raise ValueError(f"encoder.weights: timm names no weights on the hub for {name}; name a .safetensors file")
    if revision is None:
        raise ValueError(f"encoder.revision: missing for {repo}; pin its commit with --set encoder.revision=COMMIT")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, "model.safetensors", revision=revision))
    except Exception as error:  # the hub client raises many kinds, all meaning that we did not get the file
        raise ValueError(
            f"encoder.weights: model.safetensors of {repo} at {revision} could not be loaded from the hub "
            f"({type(error).__name__}); download it and name the file"
        ) from None


def _load(model: nn.Module, path: Path) -> None:
    """A checkpoint of timm's form; position embeddings are resampled by the model's own rule."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"encoder.weights: {path} cannot be read ({error}); download the file again") from None
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        weights = adapt(weights, model)
    weights = {
        key: value for key, value in weights.items() if key.split(".")[0] not in _HEADS or key in model.state_dict()
    }
    try:
        problems = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"encoder.weights: {path} is of another model ({str(error).splitlines()[-1].strip()}); use files of one model"
        ) from None
    wrong = [f"missing {k}" for k in problems.missing_keys] + [f"unknown {k}" for k in problems.unexpected_keys]
    if wrong:
        raise ValueError(f"encoder.weights: {path} does not fit ({', '.join(wrong[:3])}); use files of one model")
