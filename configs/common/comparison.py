"""What all comparisons share: the data, precision, image sizes of photographs, and budgets."""

data = dict(
    train=dict(source="datasets/scenes", split="train", image_root=None),
    unlabeled=dict(source="${data.train.source}", split="train", image_root=None),
    test=dict(source="${data.train.source}", split="test", image_root=None),
)

# A third faster on processors that multiply in bfloat16, and on GPUs.
BF16 = {"train.precision": "bf16"}

TRAIN, TEST = "dataloader.train.mapper.augmentation", "dataloader.test.mapper.augmentation"


def short_sides_at(side: int) -> list[int]:
    """Short sides of training images: `side` pixels in the middle, an eighth more or less."""
    return [side * sixteenths // 16 for sixteenths in (14, 15, 16, 17, 18)]


def sizes_at(side: int) -> tuple[dict, dict, dict]:
    """Keys of training images, of the crops among them, and of test images up to 16:9."""
    longest = side * 7 // 4
    training = {f"{TRAIN}.short_sides": short_sides_at(side), f"{TRAIN}.max_size": longest}
    crops = {
        f"{TRAIN}.crop_short_sides": [side, side * 9 // 8, side * 5 // 4],
        f"{TRAIN}.crop_size": [side * 5 // 8, side],
    }
    return training, crops, {f"{TEST}.short_sides": [side], f"{TEST}.max_size": longest}


def placed(keys: dict | None) -> tuple[dict, dict]:
    """Keys of a detector where it is the model, and where it is the one that a method trains."""
    keys = keys or {}
    return tuple(
        {f"{place}.{key}": value for key, value in keys.items()}
        for place in ("model", "model.detector")
    )


def choice(name: str) -> str:
    """One of a training config's `choices`, not of the comparison: so the dollar sign is masked."""
    return rf"\${{choices.{name}}}"


def budgets_of(small: dict[str, int], gpu: dict[str, int]) -> dict[str, dict[str, int]]:
    """Three budgets from the lengths of `updates` in two; a CPU's are the recipe's own."""

    def lengths(chosen: dict[str, int]) -> dict[str, int]:
        return {f"updates.{name}": number for name, number in chosen.items()}

    return dict(
        small={"comparison.seeds": 2, **lengths(small)},
        cpu={"comparison.seeds": 3},
        gpu={"comparison.seeds": 5, **lengths(gpu)},
    )
