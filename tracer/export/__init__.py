"""A pruned model becomes a checkpoint that transformers loads without prunescope.

In: a pruned model in memory, and where it came from. Out: a folder with safetensors, config,
tokenizer, generation config and a model card, or the reason why no class of transformers holds it.
Exports: `checkpoint.write_checkpoint`, `holding.find_holding`, `padding.pad`, `card.render`.
"""
