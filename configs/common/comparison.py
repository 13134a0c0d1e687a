"""What all comparisons share: the data, precision, image sizes of photographs, and budgets."""

data = dict(
    train=dict(source="datasets/scenes", split="train", image_root=None),
    unlabeled=dict(source="${data.train.source}", split="train", image_root=None),
    test=dict(source="${data.train.source}", split="test", image_root=None),
)

# A third faster on processors that multiply in bfloat16, and on GPUs.
BF16 = {"train.precision": "bf16"}

TRAIN, TEST = "dataloader.train.mapper.augmentation", "dataloader.test.mapper.augmentation"

# Photographs of 4:3 at 128 pixels: sizes of training images, of the crops among them, of testing.
SHORT_SIDES_128 = [112, 120, 128, 136, 144]
SIZES_128 = {f"{TRAIN}.short_sides": SHORT_SIDES_128, f"{TRAIN}.max_size": 224}
CROPS_128 = {f"{TRAIN}.crop_short_sides": [128, 144, 160], f"{TRAIN}.crop_size": [80, 128]}
TEST_128 = {f"{TEST}.short_sides": [128], f"{TEST}.max_size": 224}


def placed(keys: dict | None) -> tuple[dict, dict]:
    """Keys of a detector where it is the model, and where it is the one that a method trains."""
    keys = keys or {}
    return tuple(
        {f"{place}.{key}": value for key, value in keys.items()}
        for place in ("model", "model.detector")
    )


def budgets_of(small: dict[str, int], gpu: dict[str, int]) -> dict[str, dict[str, int]]:
    """Three budgets from the lengths of `updates` in two; a CPU's are the recipe's own."""

    def lengths(chosen: dict[str, int]) -> dict[str, int]:
        return {f"updates.{name}": number for name, number in chosen.items()}

    return dict(
        small={"comparison.seeds": 2, **lengths(small)},
        cpu={"comparison.seeds": 3},
        gpu={"comparison.seeds": 5, **lengths(gpu)},
    )
