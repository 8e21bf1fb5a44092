"""Config fields that got a new name: the old one is refused, and the message gives the new one."""

RENAMED = {
    "hierarchy.depth": "prompts.depth",
    "prompts.global_branch.handcrafted": "prompts.global_branch.anchor_weight",
    "prompts.local_branch.handcrafted": "prompts.local_branch.anchor_weight",
    "tuning.mix": "tuning.captions_per_item",
}


def renamed(name: str) -> str | None:
    """What to say about a field's old dotted name; None for any other name."""
    return f"`{name}` is now `{RENAMED[name]}`" if name in RENAMED else None
