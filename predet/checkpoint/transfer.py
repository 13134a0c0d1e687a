"""Strict transfer of a detector's weights: every tensor is accounted for by name.

What survives pre-training is the `detector` of a meta-architecture; its siblings (projectors,
embedding heads, momentum copies) are dropped. Nothing else may be missing, left over or of
another shape, except what the caller names in `reinit`.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from predet.checkpoint.files import read_checkpoint

logger = logging.getLogger(__name__)

_DETECTOR = "detector."
ALL_BUT = "all-but-"  # begins an entry of reinit: everything starts afresh, except what is named
_LAST_LAYERS = "last-layers"  # an entry of reinit: what the receiving detector calls so
# Counts batches for a momentum that nobody uses; frozen norms have none.
_OPTIONAL = ".num_batches_tracked"
_NAMED = 40  # tensors that a summary names one by one


class TransferReport(NamedTuple):
    """What a transfer did; names are those of the model that received the weights."""

    source: str
    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]  # named in reinit: keep the model's fresh values
    dropped: tuple[str, ...]  # in the checkpoint: siblings of the detector, and reinit's
    untouched: tuple[str, ...]  # in the model: siblings of the detector
    from_ema: bool

    def summary(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors{' (EMA)' * self.from_ema} from {self.source}"]
        for what, names in (
            ("re-initialised", self.reinitialised),
            ("not taken from the checkpoint", self.dropped),
            ("not in the checkpoint, beside the detector", self.untouched),
        ):
            if names:
                lines.append(f"  {what} ({len(names)}): {_listed(names)}")
        return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    """The names, or how many there are in each of the model's parts if they are many."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    parts = Counter(name.split(".")[0] for name in names)
    return ", ".join(part if part in names else f"{part}.* ({parts[part]})" for part in parts)


def load_detector(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    *,
    reinit: Sequence[str] = (),
    source: str = "",
) -> TransferReport:
    """Load a checkpoint into `model`, strictly, and say what was done.

    Either side may be a detector or a meta-architecture that holds one as `detector`. Where only
    one of them is, the detectors are matched and the siblings are left alone; where both are,
    everything must fit.

    Args:
        model: receives the weights in place; unchanged when an error is raised.
        checkpoint: a file, or what `read_checkpoint` returned, or a bare state dict. Averaged
            weights are taken where it has them.
        reinit: dotted names of modules or tensors of the detector that keep their fresh values,
            for example `("class_head",)`. Only these may differ from the checkpoint. An entry
            `all-but-NAME` stands for everything outside NAME: `("all-but-backbone",)` takes the
            backbone alone, strictly. `last-layers` stands for the layers that predict classes and
            coordinates, which the detector's `last_layers` names.
        source: what messages call a checkpoint that is not given as a file.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape and not named in `reinit`
            (each one is named); a name in `reinit` fits nothing; the file cannot be read.
    """
    if isinstance(checkpoint, Mapping):
        state, source = checkpoint, source or "the given checkpoint"
    else:
        state, source = read_checkpoint(checkpoint), str(checkpoint)
    weights, from_ema = weights_of(state)
    own = model.state_dict()
    received, dropped, untouched = _align(weights, own)
    dropped += _set_aside_counters(received, own, untouched)
    fresh = _named_by(_spelled_out(reinit, model), [*own, *received])
    problems = _differences(received, own, {*fresh, *untouched}, source)
    if problems:
        raise ValueError(
            f"{source} does not fit the model{_what_fits(received, own)}; name in train.reinit "
            "what is to start afresh:\n  " + "\n  ".join(problems)
        )
    expected = [name for name in own if name not in fresh and name not in untouched]
    model.load_state_dict({**own, **{name: received[name] for name in expected}})
    report = TransferReport(
        source=source,
        loaded=tuple(expected),
        reinitialised=tuple(name for name in own if name in fresh),
        dropped=(*dropped, *(name for name in received if name in fresh)),
        untouched=tuple(untouched),
        from_ema=from_ema,
    )
    logger.info("%s", report.summary())
    return report


def weights_of(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The averaged weights of a checkpoint, else its plain ones, and whether they are averaged.

    Raises:
        ValueError: there is none; the message names the keys that were found.
    """
    ema = state.get("ema")
    if isinstance(ema, Mapping) and ema:
        return dict(ema), True
    weights = state.get("model", state)
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"the checkpoint holds no weights under 'model'; keys: {sorted(state)}")
    strange = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            "expected a state dict, names with tensors, at the top or under 'model'; "
            f"got other values at {', '.join(strange[:5])}"
        )
    return dict(weights), False


def class_names_of(state: Mapping[str, Any]) -> list[str] | None:
    """The ordered class names of the data of a checkpoint, or None where it tells none."""
    return _names(state, "class_names")


def head_classes_of(state: Mapping[str, Any]) -> list[str] | None:
    """What the class head of a checkpoint knows, in order; None where it does not tell.

    These are the classes of the data, unless pre-training has taught others.
    """
    return _names(state, "head_classes") or class_names_of(state)


def reinit_for_classes(
    state: Mapping[str, Any], class_names: Sequence[str], model: nn.Module
) -> tuple[str, ...]:
    """`reinit` by predet's rule: the class head is kept if and only if it knows these classes.

    What of a detector depends on its classes is `class_layers`, dotted names, or its `class_head`.
    """
    detector = getattr(model, "detector", model)
    fresh = tuple(getattr(detector, "class_layers", ("class_head",)))
    return () if head_classes_of(state) == list(class_names) else fresh


def _names(state: Mapping[str, Any], key: str) -> list[str] | None:
    names = (state.get("provenance") or {}).get(key)
    if isinstance(names, str):  # metadata of safetensors is text
        names = json.loads(names)
    return list(names) if names else None


def _align(
    weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Rename the checkpoint's tensors to the model's names.

    Returns the tensors to load, the checkpoint's siblings of the detector that are dropped, and
    the model's siblings that have no counterpart.
    """
    theirs = any(name.startswith(_DETECTOR) for name in weights)
    ours = any(name.startswith(_DETECTOR) for name in own)
    if theirs == ours:
        return weights, [], []
    if theirs:
        kept = {
            name.removeprefix(_DETECTOR): value
            for name, value in weights.items()
            if name.startswith(_DETECTOR)
        }
        return kept, [name for name in weights if not name.startswith(_DETECTOR)], []
    renamed = {_DETECTOR + name: value for name, value in weights.items()}
    return renamed, [], [name for name in own if not name.startswith(_DETECTOR)]


def _spelled_out(reinit: Sequence[str], model: nn.Module) -> list[str]:
    """`reinit` with `last-layers` replaced by the names of the detector."""
    if isinstance(reinit, str):
        raise ValueError(f"reinit must be a list of names, got the text {reinit!r}")
    detector = getattr(model, "detector", model)
    names: list[str] = []
    for entry in reinit:
        if entry != _LAST_LAYERS:
            names.append(entry)
        elif hasattr(detector, "last_layers"):
            names += detector.last_layers
        else:
            raise ValueError(
                f"reinit has '{_LAST_LAYERS}', but {type(detector).__name__} does not tell which "
                "these are: name them"
            )
    return names


def _named_by(reinit: Sequence[str], names: Sequence[str]) -> set[str]:
    """The tensors that `reinit` names: the tensor itself, a module above it, or all but one."""
    fresh: set[str] = set()
    kept: set[str] = set()
    for entry in reinit:
        pattern = entry.removeprefix(ALL_BUT)
        found = {
            name
            for name in names
            if any(_is_under(name, prefix + pattern) for prefix in ("", _DETECTOR))
        }
        if pattern != entry:
            kept |= found
        else:
            fresh |= found
        if not found:
            modules = {name.rsplit(".", depth)[0] for name in names for depth in range(1, 4)}
            near = difflib.get_close_matches(pattern, sorted({*modules, *names}), n=3)
            raise ValueError(
                f"reinit names '{pattern}', which neither the model nor the checkpoint has"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
    return fresh | (set(names) - kept if kept else set())


def _is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _set_aside_counters(
    received: dict[str, Tensor], own: Mapping[str, Tensor], untouched: list[str]
) -> list[str]:
    """Take out of `received`, or add to `untouched`, the counters that only one side's norms have.

    Returns the names taken out.
    """
    surplus = [name for name in received if name.endswith(_OPTIONAL) and name not in own]
    for name in surplus:
        del received[name]
    lacking = [name for name in own if name.endswith(_OPTIONAL) and name not in received]
    untouched += [name for name in lacking if name not in untouched]
    return surplus


def _what_fits(received: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Told of a checkpoint whose backbone fits and nothing else: one of another kind of model."""
    fitting = [n for n, value in own.items() if n in received and received[n].shape == value.shape]
    backbone = [n for n in own if any(_is_under(n, p + "backbone") for p in ("", _DETECTOR))]
    if not backbone or fitting != backbone:
        return ""
    return " but for its backbone, which train.reinit=[all-but-backbone] takes alone"


def _differences(
    received: Mapping[str, Tensor], own: Mapping[str, Tensor], excepted: set[str], source: str
) -> list[str]:
    """One line for each tensor that does not fit and is not among the excepted."""
    problems = []
    for name, value in own.items():
        if name in excepted:
            continue
        if name not in received:
            problems.append(f"missing: {name} {tuple(value.shape)} is not in {source}")
        elif received[name].shape != value.shape:
            problems.append(
                f"shape: {name} expected {tuple(value.shape)}, got {tuple(received[name].shape)}"
            )
    for name, value in received.items():
        if name not in own and name not in excepted:
            problems.append(f"unexpected: {name} {tuple(value.shape)} is not in the model")
    return problems
