"""Align the embedded SmolLM2-135M with four preference rows by Softmax DPO, and print how the loss falls."""

from prefrec import SoftmaxDPOConfig, SoftmaxDPOTrainer, lora_config

SCIENCE_FICTION = ["Alien", "Aliens", "The Terminator"]
COMEDIES = ["Emma", "Clueless", "Babe"]

# As in TRL, but `rejected` holds as many answers as you have.
rows = [
    {"prompt": "Watched: Alien; Aliens. Next:", "chosen": "The Terminator", "rejected": COMEDIES},
    {"prompt": "Watched: The Terminator; Aliens. Next:", "chosen": "Alien", "rejected": COMEDIES},
    {"prompt": "Watched: Emma; Clueless. Next:", "chosen": "Babe", "rejected": SCIENCE_FICTION},
    {"prompt": "Watched: Babe; Emma. Next:", "chosen": "Clueless", "rejected": SCIENCE_FICTION},
]
args = SoftmaxDPOConfig(
    output_dir="runs/example",
    beta=1.0,
    learning_rate=5e-4,
    num_train_epochs=8,
    per_device_train_batch_size=4,
    logging_steps=1,
)
trainer = SoftmaxDPOTrainer("smollm2-135m", args=args, train_dataset=rows, peft_config=lora_config(r=16))
trainer.train()
trainer.save_model("runs/example/adapter")

# The first loss is log(1 + 3): before training, policy and reference are the same.
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss:", ", ".join(f"{loss:.3f}" for loss in losses))
