"""How a run goes, with what all recipes share. Every key of `TrainSettings` can be set."""

train = dict(
    output_dir="./output",
    init_checkpoint="",
    reinit=[],
    seed=0,
    device="cuda",  # the CPU where there is no GPU
    precision="fp32",
    clip_grad_norm=0.1,
    ema_decay=None,
    log_period=20,
    eval_period=5000,
    checkpoint_period=1000,
    on_bad_sample="skip",
)
