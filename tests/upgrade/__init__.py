"""The last release beside this tree: its schema under ours, its nodes beside ours under load."""
